-- The replays that run and their rates. Lives on replays_running.
select replay_id, rate_per_s from webhooks.replays where state = 'running' order by replay_id

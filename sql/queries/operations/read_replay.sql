-- The progress of a replay. $1 bigint: its id.
select replay_id, state, total, endpoints, done, rate_per_s from webhooks.replays where replay_id = $1

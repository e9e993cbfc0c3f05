-- Pauses a replay, for operators.
-- needs: switch_replay
create or replace function webhooks.pause_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{running}', 'paused', 'pause_replay')
$$;
comment on function webhooks.pause_replay is 'Queues no more deliveries of a replay; those that it has queued go on';

-- Pauses a replay, for operators.
-- needs: switch_replay
create or replace function webhooks.pause_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{running}', 'paused', 'pause_replay')
$$;
comment on function webhooks.pause_replay is 'Puts no more deliveries of a replay on their way; those that are go on';

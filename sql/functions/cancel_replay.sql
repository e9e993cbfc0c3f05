-- Ends a replay for good, for operators.
-- needs: switch_replay
create or replace function webhooks.cancel_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{running,paused}', 'cancelled', 'cancel_replay')
$$;
comment on function webhooks.cancel_replay is 'Ends a replay for good; deliveries that it has queued go on';

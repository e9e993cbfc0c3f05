-- Resumes a paused replay, for operators.
-- needs: switch_replay
create or replace function webhooks.resume_replay(replay_id bigint) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select webhooks.switch_replay(replay_id, '{paused}', 'running', 'resume_replay')
$$;
comment on function webhooks.resume_replay is 'Lets a paused replay go on where it was paused';

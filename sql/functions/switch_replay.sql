-- A part of pause_replay, resume_replay and cancel_replay: changes the state of a replay and records that.
-- needs: ring_replay
create or replace function webhooks.switch_replay(replay_id bigint, from_states text[], to_state text, what text) returns void
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  was text;
begin
  select p.state into was from webhooks.replays p where p.replay_id = switch_replay.replay_id for update;
  if not found then
    raise exception 'there is no replay %', replay_id using errcode = 'no_data_found';
  elsif was <> all (from_states) then
    raise exception 'replay % is %', replay_id, was using errcode = 'object_not_in_prerequisite_state';
  end if;
  update webhooks.replays p
  set state = to_state, ended_at = case when to_state = 'cancelled' then now() end
  where p.replay_id = switch_replay.replay_id;
  insert into webhooks.operations (what, detail)
  values (switch_replay.what, jsonb_build_object('replay_id', switch_replay.replay_id));
  perform webhooks.ring_replay();
end $$;

-- Starts a replay, for operators; counts only unless dry_run is false.
-- needs: plan_replay, ring_replay
create or replace function webhooks.replay(
  event_ids bigint[] default null, endpoint_id bigint default null, site_id text default null, types text[] default null,
  since timestamptz default null, until timestamptz default null, states text[] default '{dead}',
  rate_per_s real default null, dry_run boolean default true) returns table (replay_id bigint, deliveries bigint)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_variable
declare
  r webhooks.replays := webhooks.plan_replay(event_ids, endpoint_id, site_id, types, since, until, states, rate_per_s);
begin
  deliveries := r.total;
  if dry_run is false then  -- null starts nothing
    insert into webhooks.replays as p
      (spec, rate_per_s, total, endpoints, created_at, last_event_id, settled_event_id, after_event_id, after_endpoint_id)
    values (r.spec, r.rate_per_s, r.total, r.endpoints, r.created_at, r.last_event_id, r.settled_event_id, r.after_event_id, r.after_endpoint_id)
    returning p.replay_id into replay_id;
    insert into webhooks.operations (what, detail)
    values ('replay', r.spec || jsonb_build_object('replay_id', replay_id, 'deliveries', deliveries, 'rate_per_s', r.rate_per_s));
    perform webhooks.ring_replay();
  end if;
  return next;
end $$;
comment on function webhooks.replay is
  'Delivers dead and delivered events once more, and missed ones for the first time (states dead, delivered, '
  'missed); at rate_per_s, 100 where it is null. Counts only, unless dry_run is false';

-- As replay_any, for a replay of dead deliveries alone.
-- needs: is_erased, takes
create or replace function webhooks.replay_dead(
  event_ids bigint[], endpoint_id bigint, site_id text, types text[], since timestamptz, until timestamptz, made_at timestamptz,
  after_event_id bigint, after_endpoint_id bigint, to_event_id bigint, most int)
returns table (event bigint, endpoint bigint, site text, attempt smallint)
language sql stable as $$
  select d.event_id, d.endpoint_id, d.site_id, d.attempts
  from (
    select b.event_id, b.endpoint_id, b.site_id, b.attempts from webhooks.dead b
    where b.event_id >= replay_dead.after_event_id and b.event_id <= replay_dead.to_event_id
      and (b.event_id, b.endpoint_id) > (replay_dead.after_event_id, replay_dead.after_endpoint_id)
      and (replay_dead.event_ids is null or b.event_id = any (replay_dead.event_ids))
      and (replay_dead.endpoint_id is null or b.endpoint_id = replay_dead.endpoint_id)
      and (replay_dead.site_id is null or b.site_id = replay_dead.site_id)
      -- nobody lost these; one that is named is meant
      and (replay_dead.event_ids is not null or b.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped'))
      and b.attempts < 30000
    order by b.event_id, b.endpoint_id
    offset 0) d
  cross join lateral (
    select from webhooks.events e
    where e.event_id = d.event_id and e.event_id >= replay_dead.after_event_id and e.event_id <= replay_dead.to_event_id
      and not webhooks.is_erased(e.payload)
      and (replay_dead.types is null or webhooks.takes(replay_dead.types, e.type))
      and (replay_dead.since is null or e.created_at >= replay_dead.since)
      and (replay_dead.until is null or e.created_at < replay_dead.until)
    limit 1) e
  cross join lateral (
    select from webhooks.endpoints p
    where p.endpoint_id = d.endpoint_id and (p.enabled or p.disabled_at >= replay_dead.made_at)
    limit 1) p
  where not exists (
    select from webhooks.backlog b where b.event_id = d.event_id and b.endpoint_id = d.endpoint_id)
  order by d.event_id, d.endpoint_id
  limit most
$$;

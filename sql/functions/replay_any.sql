-- The next deliveries of a replay of any states, between two ids, in the order of its cursor. A single SELECT, so that
-- the planner sees through it; called by replay_page alone, whose search_path it has.
-- needs: is_erased, takes
create or replace function webhooks.replay_any(
  event_ids bigint[], endpoint_id bigint, site_id text, types text[], since timestamptz, until timestamptz, states text[],
  made_at timestamptz, settled_event_id bigint, after_event_id bigint, after_endpoint_id bigint, to_event_id bigint, most int)
returns table (event bigint, endpoint bigint, site text, attempt smallint)
language sql stable as $$
  select e.event_id, p.endpoint_id, e.site_id, coalesce(d.attempts, t.attempts, 0::smallint)
  from (
    select v.event_id, v.site_id, v.type, v.endpoint_id from webhooks.events v
    where v.event_id >= replay_any.after_event_id and v.event_id <= replay_any.to_event_id
      and (replay_any.event_ids is null or v.event_id = any (replay_any.event_ids))
      and (replay_any.site_id is null or v.site_id = replay_any.site_id)
      and (replay_any.types is null or webhooks.takes(replay_any.types, v.type))
      and (replay_any.since is null or v.created_at >= replay_any.since)
      and (replay_any.until is null or v.created_at < replay_any.until)
      and not webhooks.is_erased(v.payload)
    order by v.event_id
    offset 0) e
  cross join lateral (
    select q.endpoint_id, q.from_event_id, q.event_types from webhooks.endpoints q
    where q.site_id = e.site_id and (q.enabled or q.disabled_at >= replay_any.made_at)
      and (replay_any.endpoint_id is null or q.endpoint_id = replay_any.endpoint_id)
      and (e.endpoint_id is null or q.endpoint_id = e.endpoint_id)
      and (e.event_id > replay_any.after_event_id or q.endpoint_id > replay_any.after_endpoint_id)
    offset 0) p
  left join lateral (
    select b.attempts, b.reason from webhooks.dead b
    where b.event_id = e.event_id and b.endpoint_id = p.endpoint_id
      and b.event_id >= replay_any.after_event_id and b.event_id <= replay_any.to_event_id
    limit 1) d on true
  cross join lateral (
    select max(a.attempt) as attempts, bool_or(a.outcome = 'delivered') as delivered from webhooks.attempts a
    where a.event_id = e.event_id and a.endpoint_id = p.endpoint_id
      and a.event_id >= replay_any.after_event_id and a.event_id <= replay_any.to_event_id) t
  where not exists (
      select from webhooks.backlog b where b.event_id = e.event_id and b.endpoint_id = p.endpoint_id)
    and coalesce(d.attempts, t.attempts, 0) < 30000
    and case
      when d.reason is not null then 'dead' = any (states)
        and (replay_any.event_ids is not null or d.reason not in ('cancelled', 'superseded', 'duplicate', 'dropped'))
      when t.delivered then 'delivered' = any (states)
      when t.attempts is null then 'missed' = any (states)
        -- above these the event may be in flight at this moment
        and e.event_id <= greatest(p.from_event_id, replay_any.settled_event_id)
        and (e.endpoint_id is not null or webhooks.takes(p.event_types, e.type))
      else false end
  order by e.event_id, p.endpoint_id
  limit most
$$;

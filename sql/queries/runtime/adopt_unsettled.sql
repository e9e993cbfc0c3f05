-- Queues what the old positions leave open: not visible in the snapshot of its shard, or beyond the greatest id known
-- there, and neither delivered nor in backlog nor dead. In one snapshot with adopt_positions. Returns how many.
with shards as (
  select shard, coalesce(upto, snapshot) as snapshot, snapshot as since, upto is not null as inside, last_event_id,
    least(floor, front) as floor, coalesce(max_event_id, 0) as max_event_id, count(*) over () as n
  from webhooks.shards
), open as (
  select e.event_id, p.endpoint_id, e.site_id, e.dedupe_key, sha256(decode(replace(e.dedupe_key, '\', '\\'), 'escape')) as digest
  from webhooks.events e
  join webhooks.endpoints p on p.site_id = e.site_id and e.event_id > p.from_event_id
    and (case when e.endpoint_id is not null then e.endpoint_id = p.endpoint_id else webhooks.takes(p.event_types, e.type) end)
  join shards s on s.shard = webhooks.shard_of(e.site_id, s.n)
  where e.event_id > s.floor
    and (s.snapshot is null or e.event_id > s.max_event_id or not pg_visible_in_snapshot(e.xid, s.snapshot)
      or (s.inside and e.event_id > s.last_event_id and not pg_visible_in_snapshot(e.xid, s.since)))
    and not exists (select from webhooks.attempts a
      where a.event_id = e.event_id and a.endpoint_id = p.endpoint_id and a.outcome = 'delivered')
    and not exists (select from webhooks.dead d where d.event_id = e.event_id and d.endpoint_id = p.endpoint_id)
), decided as (  -- nobody asks about duplicates when a row is due: an earlier event of the dedupe_key, of this week
  select event_id, endpoint_id, site_id, dedupe_key is not null and exists (
    select from webhooks.events o
    where o.site_id = open.site_id and o.dedupe_key = open.dedupe_key
      and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = open.digest
      and o.event_id >= (open.event_id / 4294967296 - 7) * 4294967296 and o.event_id < open.event_id
      and not exists (select from webhooks.dead d where d.event_id = o.event_id and d.reason = 'duplicate')) as is_duplicate
  from open
), buried as (
  insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
  select event_id, endpoint_id, site_id, 'duplicate', 0 from decided
  where is_duplicate
    and not exists (select from webhooks.backlog b where b.event_id = decided.event_id and b.endpoint_id = decided.endpoint_id)
  on conflict do nothing
), queued as (
  insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, cause, next_attempt_at)
  select event_id, endpoint_id, site_id, 'waiting', 'adopted', 'recovery', now() from decided where not is_duplicate
  on conflict do nothing
  returning 1
)
select count(*) from queued

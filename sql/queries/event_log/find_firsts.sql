-- Returns the first event of each site and dedupe_key in a difference: 0 if one was visible before the difference, else
-- the least event_id in it. Events that became visible after it do not count yet: else each would be the other's
-- duplicate. $1 text[]: site ids; $2 text[]: dedupe_keys; $3 bigint[], $4 bigint[]: from which event_id on and up to
-- which one events count, of each key; $5 bigint, $6 bigint: the least and the greatest of these; $7 pg_snapshot, $8
-- pg_snapshot: the difference. Lives on events_by_dedupe_key, of each of these days: one step for each key, then a walk
-- over those of its events that the difference holds.
select g.n, case when f.is_old or b.is_late then 0 else f.event_id end as first_event_id
from (
  select *, sha256(decode(replace(dedupe_key, '\', '\\'), 'escape')) as digest
  from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) with ordinality as u(site_id, dedupe_key, from_event_id, to_event_id, n)
  offset 0) g
cross join lateral (
  select o.event_id, pg_visible_in_snapshot(o.xid, $7) as is_old
  from webhooks.events o
  where o.site_id = g.site_id and o.dedupe_key = g.dedupe_key
    and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = g.digest
    and o.event_id between g.from_event_id and g.to_event_id and o.event_id between $5 and $6
    and pg_visible_in_snapshot(o.xid, $8)
  order by o.event_id
  limit 1) f
cross join lateral (
  select exists (
    select from webhooks.events o
    where not f.is_old and o.site_id = g.site_id and o.dedupe_key = g.dedupe_key
      and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = g.digest
      and o.event_id > f.event_id and o.event_id <= g.to_event_id and o.event_id between $5 and $6
      and pg_visible_in_snapshot(o.xid, $7)) as is_late) b

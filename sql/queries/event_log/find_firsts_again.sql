-- The same during recovery, when some events are settled already, and differences were others. The first event of a key
-- is the one that was treated as the first (it has a row with a reason other than duplicate), and never one that was
-- treated as a duplicate. Null: all events read were treated as duplicates. $1 text[]: site ids; $2 text[]:
-- dedupe_keys; $3 bigint[], $4 bigint[]: from which event_id on and up to which one events count, of each key; $5
-- bigint, $6 bigint: the least and the greatest of these; $7 pg_snapshot, $8 pg_snapshot: the difference; $9 int: how
-- many events of a key are searched for such rows. Lives on events_by_dedupe_key, of each of these days, then on the
-- keys of attempts, backlog and dead.
select g.n, case when b.is_old then 0 when not f.is_other then f.event_id end as first_event_id
from (
  select *, sha256(decode(replace(dedupe_key, '\', '\\'), 'escape')) as digest
  from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[]) with ordinality as u(site_id, dedupe_key, from_event_id, to_event_id, n)
  offset 0) g
cross join lateral (
  select exists (
    select from webhooks.events o
    where o.site_id = g.site_id and o.dedupe_key = g.dedupe_key
      and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = g.digest
      and o.event_id between g.from_event_id and g.to_event_id and o.event_id between $5 and $6
      and pg_visible_in_snapshot(o.xid, $7)) as is_old) b
cross join lateral (
  select c.event_id, s.is_other
  from (
    select o.event_id
    from webhooks.events o
    where o.site_id = g.site_id and o.dedupe_key = g.dedupe_key
      and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = g.digest
      and o.event_id between g.from_event_id and g.to_event_id and o.event_id between $5 and $6
      and pg_visible_in_snapshot(o.xid, $8)
    order by o.event_id
    limit case when b.is_old then 1 else $9 end) c
  cross join lateral (select
    exists (select from webhooks.attempts a where a.event_id = c.event_id)
      or exists (select from webhooks.backlog w where w.event_id = c.event_id)
      or exists (select from webhooks.dead d where d.event_id = c.event_id and d.reason <> 'duplicate') as is_first,
    exists (select from webhooks.dead d where d.event_id = c.event_id and d.reason = 'duplicate') as is_other
    offset 0) s
  order by s.is_first desc, s.is_other, c.event_id
  limit 1) f

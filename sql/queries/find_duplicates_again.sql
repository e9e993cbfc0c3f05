-- The same on the recovery road, where some are settled already, and differences were others: the first of a key is what
-- was taken for the first (it has a row that says otherwise than duplicate), and never what was taken for a duplicate.
-- $1.. arrays: event_id, site_id, dedupe_key; $4 pg_snapshot, $5 pg_snapshot: the difference.
-- Lives on events_by_dedupe_key, of each day, then on the keys of attempts, backlog and dead.
select u.event_id
from unnest($1::bigint[], $2::text[], $3::text[]) as u(event_id, site_id, dedupe_key)
cross join lateral (
  select o.event_id
  from webhooks.events o
  cross join lateral (select
    exists (select from webhooks.attempts a where a.event_id = o.event_id)
      or exists (select from webhooks.backlog b where b.event_id = o.event_id)
      or exists (select from webhooks.dead d where d.event_id = o.event_id and d.reason <> 'duplicate') as is_first,
    exists (select from webhooks.dead d where d.event_id = o.event_id and d.reason = 'duplicate') as is_other
    offset 0) s
  where o.site_id = u.site_id and o.dedupe_key = u.dedupe_key and pg_visible_in_snapshot(o.xid, $5)
  order by s.is_first desc, s.is_other, pg_visible_in_snapshot(o.xid, $4) desc, o.event_id
  limit 1) o
where o.event_id <> u.event_id

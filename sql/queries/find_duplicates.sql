-- Which events of a difference are not the first of their site and dedupe_key: another one was visible before the
-- difference, or lies in it with a lesser id. What became visible after it does not count yet: else each would be the
-- other's duplicate. $1.. arrays: event_id, site_id, dedupe_key; $4 pg_snapshot, $5 pg_snapshot: the difference.
-- Lives on events_by_dedupe_key, of each day.
select u.event_id
from unnest($1::bigint[], $2::text[], $3::text[]) as u(event_id, site_id, dedupe_key)
cross join lateral (
  select from webhooks.events o
  where o.site_id = u.site_id and o.dedupe_key = u.dedupe_key and o.event_id <> u.event_id
    and pg_visible_in_snapshot(o.xid, $5) and (o.event_id < u.event_id or pg_visible_in_snapshot(o.xid, $4))
  limit 1) o

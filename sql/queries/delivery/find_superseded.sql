-- Returns the event that replaces the older ones of a supersede_key at an endpoint: the newest one that can be
-- delivered there, or was delivered. An event that died undelivered replaces nothing, unless its attempts were used up
-- (exhausted, too_old, aborted). Nor does an event that is scheduled for later, may be a duplicate, or may be left out
-- by a filter. A key without a replacing event has no row. $1 bigint[]: endpoint ids; $2 text[]: site ids; $3 text[]:
-- supersede_keys; $4 bigint[]: after which event_id, each; $5 bigint: the least of these; $6 int: how many events of a
-- key are read, the newest first; $7 bigint: payload_bytes_max; $8 int: days for which a dedupe_key counts. Lives on
-- events_by_supersede_key, of each later day.
select g.n, f.event_id as newest_event_id
from (
  select *, sha256(decode(replace(supersede_key, '\', '\\'), 'escape')) as digest
  from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) with ordinality as u(endpoint_id, site_id, supersede_key, after_event_id, n)
  offset 0) g
join webhooks.endpoints p on p.endpoint_id = g.endpoint_id and p.filter is null
cross join lateral (
  select c.event_id
  from (
    select e.event_id, e.site_id, e.type, e.payload, e.endpoint_id, e.dedupe_key, e.deliver_after, e.deliver_before,
      sha256(decode(replace(e.dedupe_key, '\', '\\'), 'escape')) as dedupe_digest
    from webhooks.events e
    where e.site_id = g.site_id and e.supersede_key = g.supersede_key
      and sha256(decode(replace(e.supersede_key, '\', '\\'), 'escape')) = g.digest
      and e.event_id > g.after_event_id and e.event_id > $5
    order by e.event_id desc
    limit $6) c
  cross join lateral (select
    c.endpoint_id is null and webhooks.takes(p.event_types, c.type) and c.type ~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$'
      and (c.deliver_after is null or c.deliver_after <= now())
      and (c.deliver_before is null or c.deliver_before > now()
        or exists (select from webhooks.attempts a where a.event_id = c.event_id and a.endpoint_id = g.endpoint_id))
      and case when pg_column_size(c.payload) > $7 then false when pg_column_compression(c.payload) is null then true
        else octet_length(c.payload::text) <= $7 end
      and not exists (select from webhooks.dead d
        where d.event_id = c.event_id and d.endpoint_id = g.endpoint_id and d.reason not in ('exhausted', 'too_old', 'aborted'))
      and (c.dedupe_key is null
        or exists (select from webhooks.attempts a where a.event_id = c.event_id)
        or exists (select from webhooks.backlog b where b.event_id = c.event_id)
        or not exists (select from webhooks.events o
          where o.site_id = c.site_id and o.dedupe_key = c.dedupe_key
            and sha256(decode(replace(o.dedupe_key, '\', '\\'), 'escape')) = c.dedupe_digest
            and o.event_id >= (c.event_id / 4294967296 - $8) * 4294967296
            and o.event_id < (c.event_id / 4294967296 + $8 + 1) * 4294967296
            and o.event_id <> c.event_id)) as replaces
    offset 0) s  -- scalar subqueries: they prune to a day, joins may read them all
  where s.replaces
  order by c.event_id desc
  limit 1) f

-- Which deliveries were replaced: those whose endpoint takes a newer event of the same site and supersede_key. A newer
-- one that may be a duplicate replaces nothing, nor is anything replaced where a filter may leave the newer one out.
-- $1.. arrays: event_id, endpoint_id, site_id, supersede_key. Lives on events_by_supersede_key, of each later day.
select u.event_id, u.endpoint_id
from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[]) as u(event_id, endpoint_id, site_id, supersede_key)
join webhooks.endpoints p on p.endpoint_id = u.endpoint_id and p.filter is null
cross join lateral (
  select from webhooks.events n
  where n.site_id = u.site_id and n.supersede_key = u.supersede_key and n.event_id > u.event_id
    and n.endpoint_id is null and webhooks.takes(p.event_types, n.type)
    and (n.dedupe_key is null or not exists (select from webhooks.events o
      where o.site_id = n.site_id and o.dedupe_key = n.dedupe_key and o.event_id <> n.event_id))
  limit 1) n

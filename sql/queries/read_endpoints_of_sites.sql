-- The endpoints of a page's sites, read after the page: one that was committed before an event is always seen.
-- $1 text[]: site ids; $2 int: how many shards there are. Lives on endpoints_of_site.
select p.endpoint_id, p.site_id, mod(mod(hashtextextended(p.site_id, 0), $2) + $2, $2)::int as shard, p.url, p.event_types,
  p.enabled, p.from_event_id, p.secret, s.url as source, p.concurrency, p.timeout_s
from webhooks.endpoints p
join webhooks.sites s using (site_id)
where p.site_id = any ($1::text[])

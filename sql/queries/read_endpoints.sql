-- Endpoints by id: for due rows, and for queued work whose endpoint may have changed.
-- $1 bigint[]: endpoint ids; $2 int: how many shards there are. Lives on the primary key.
select p.endpoint_id, p.site_id, mod(mod(hashtextextended(p.site_id, 0), $2) + $2, $2)::int as shard, p.url, p.event_types,
  p.enabled, p.from_event_id, p.secret, s.url as source, p.concurrency, p.timeout_s
from webhooks.endpoints p
join webhooks.sites s using (site_id)
where p.endpoint_id = any ($1::bigint[])

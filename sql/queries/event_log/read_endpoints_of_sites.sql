-- The endpoints of some sites, read after their events: one that was committed before an event is always seen. $1
-- text[]: site ids; $2 int: how many shards there are; $3 bigint[], $4 bigint[]: per site, after which endpoint id and
-- up to which; $5 int: endpoints of one site, the first by id. Lives on endpoints_of_site, a step for each site.
select
  --include endpoint_columns
from unnest($1::text[], $3::bigint[], $4::bigint[]) i(site_id, after, upto)
cross join lateral (
  select * from webhooks.endpoints
  where site_id = i.site_id and endpoint_id > i.after and endpoint_id <= i.upto
  order by endpoint_id
  limit $5) p
cross join lateral (select * from webhooks.sites where site_id = i.site_id limit 1) s

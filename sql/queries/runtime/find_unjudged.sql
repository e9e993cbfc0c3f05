-- Endpoints that are new or have changed since they were last judged, each with the version of its row. $1 int: rows;
-- $2 int: how many shards there are. Lives on endpoints_unjudged.
select
  --include endpoint_columns
  , p.xmin::text as version
from (select *, xmin from webhooks.endpoints where judged_at is null order by endpoint_id limit $1) p
cross join lateral (select * from webhooks.sites where site_id = p.site_id limit 1) s

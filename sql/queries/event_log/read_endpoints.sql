-- Endpoints by id: for due rows, and for queued work whose endpoint may have changed. $1 bigint[]: endpoint ids, each
-- once; $2 int: how many shards there are. Lives on the primary key, a step for each id: where the table was empty when
-- the plan was made, "= any" would compare every endpoint with every id.
select
  --include endpoint_columns
from unnest($1::bigint[]) i
cross join lateral (select * from webhooks.endpoints where endpoint_id = i limit 1) p
cross join lateral (select * from webhooks.sites where site_id = p.site_id limit 1) s

-- Records deliveries that were given up. $1.. arrays: event_id, endpoint_id, site_id, reason, attempts. Nothing is kept
-- of a dropped day: returns such days, and how many deliveries each had.
with u as materialized (
  select u.*, u.event_id / 4294967296 as day
  from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::smallint[]) as u(event_id, endpoint_id, site_id, reason, attempts)
), there as materialized (
  select d.day from (select distinct day from u) d
  where exists (select from pg_inherits where inhrelid = to_regclass('webhooks.dead_' || d.day) and not inhdetachpending)
), buried as (
  insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
  select event_id, endpoint_id, site_id, reason, attempts from u where day in (select day from there)
  on conflict do nothing
)
select day::int, count(*)::int as deliveries from u where day not in (select day from there) group by day

-- Deletes a page of old rows of endpoint_hours. $1 int: days; $2 int: rows. Returns how many. Lives on the primary key.
with gone as (
  delete from webhooks.endpoint_hours where ctid = any (array(
    select ctid from webhooks.endpoint_hours where hour < now() - make_interval(days => $1) order by hour limit $2))
  returning 1)
select count(*)::int from gone

-- Deletes a page of old operations. $1 int: days; $2 int: rows. Returns how many. Lives on operations_by_time.
with gone as (
  delete from webhooks.operations where ctid = any (array(
    select ctid from webhooks.operations where at < now() - make_interval(days => $1) order by at limit $2))
  returning 1)
select count(*)::int from gone

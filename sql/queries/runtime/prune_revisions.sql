-- Deletes a page of old revisions of endpoints that a later one has replaced. $1 int: days; $2 int: rows. Returns how
-- many. Lives on endpoint_revisions_replaced.
with gone as (
  delete from webhooks.endpoint_revisions where ctid = any (array(
    select ctid from webhooks.endpoint_revisions
    where replaced and changed_at < now() - make_interval(days => $1) order by changed_at limit $2))
  returning 1)
select count(*)::int from gone

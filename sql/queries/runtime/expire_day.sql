-- Gives up a page of the deliveries of a day that are still in backlog, so that the day can be removed. $1 int: the
-- day; $2 int: rows. Returns how many, by endpoint. Lives on the primary key of backlog.
with page as materialized (
  select b.event_id, b.endpoint_id from webhooks.backlog b
  where b.event_id >= $1::int * 4294967296 and b.event_id < ($1::int + 1) * 4294967296
  order by b.event_id, b.endpoint_id
  limit $2
  for update skip locked
), gone as (
  delete from webhooks.backlog b using page
  where b.event_id = page.event_id and b.endpoint_id = page.endpoint_id
  returning b.event_id, b.endpoint_id, b.site_id, b.attempts
), buried as (
  insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
  select event_id, endpoint_id, site_id, 'expired', attempts from gone
  on conflict do nothing
)
select endpoint_id, min(site_id) as site_id, count(*)::int as deliveries from gone group by endpoint_id

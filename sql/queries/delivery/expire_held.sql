-- Gives up a page of deliveries that have been held for too long. Rows of an endpoint that is enabled again are left
-- alone: they will be sent. Rows of a dropped day are deleted and get no row in dead. $1 float8: days; $2 int: rows.
-- Returns how many, by endpoint. Lives on backlog_held.
with page as materialized (
  select b.event_id, b.endpoint_id from webhooks.backlog b
  where b.state = 'held' and b.since < now() - $1::float8 * interval '1 day'
    and not (b.reason = 'disabled'
      and exists (select from webhooks.endpoints p where p.endpoint_id = b.endpoint_id and p.enabled))
  order by b.since
  limit $2
  for update skip locked
), gone as (
  delete from webhooks.backlog b using page
  where b.event_id = page.event_id and b.endpoint_id = page.endpoint_id
  returning b.event_id, b.endpoint_id, b.site_id, b.attempts
), buried as (
  insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
  select g.event_id, g.endpoint_id, g.site_id, 'expired', g.attempts from gone g
  where exists (select from pg_inherits where inhrelid = to_regclass('webhooks.dead_' || g.event_id / 4294967296))
  on conflict do nothing
)
select endpoint_id, min(site_id) as site_id, count(*)::int as deliveries from gone group by endpoint_id

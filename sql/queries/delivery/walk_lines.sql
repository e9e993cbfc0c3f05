-- Reads a page of an ordered endpoint's deliveries, and assigns a line to those without one: they were inserted by a
-- function, or while the endpoint was not ordered. $1 bigint: endpoint id; $2 bigint: after this event_id; $3 int:
-- rows. One row: the last event_id read (null: no row) and the lines found. Lives on backlog_of_endpoint. Rows that an
-- operator's function has locked are left for the next time.
with page as materialized (
  select event_id, line from webhooks.backlog
  where endpoint_id = $1 and event_id > $2
  order by event_id
  limit $3
), free as materialized (
  select b.event_id from page
  join webhooks.backlog b on b.event_id = page.event_id and b.endpoint_id = $1
  where page.line is null
  for update of b skip locked
), placed as (
  update webhooks.backlog b
  set line = coalesce((select e.ordering_key from webhooks.events e where e.event_id = free.event_id limit 1), '')
  from free where b.event_id = free.event_id and b.endpoint_id = $1
  returning b.line
)
select (select max(event_id) from page) as last_event_id,
  array(select line from page where line is not null union select line from placed) as lines

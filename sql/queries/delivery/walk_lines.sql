-- Looks through a page of an ordered endpoint's deliveries, and gives those a line that have none: they were put there
-- while it was not ordered, or by a function. $1 bigint: endpoint id; $2 bigint: after this event_id; $3 int: rows. One
-- row: the last event_id looked at (null: none) and the lines found. Lives on backlog_of_endpoint. What an operator's
-- function is at work on is left for the next time.
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

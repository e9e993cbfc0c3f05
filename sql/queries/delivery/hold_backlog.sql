-- Holds a page of a disabled endpoint's deliveries; does nothing for an endpoint that is enabled or deleted. $1 bigint:
-- endpoint id; $2 bigint: after this event_id; $3 int: rows to read. Returns the last event_id read (null: no row).
-- Lives on backlog_of_endpoint. Rows that an operator's function has locked are left to it.
with page as materialized (
  select event_id, state from webhooks.backlog
  where endpoint_id = $1 and event_id > $2
    and exists (select from webhooks.endpoints p where p.endpoint_id = $1 and not p.enabled)
  order by event_id
  limit $3
), free as materialized (
  select b.event_id from page
  join webhooks.backlog b on b.event_id = page.event_id and b.endpoint_id = $1 and b.state <> 'held'
  where page.state <> 'held'
  for update of b skip locked
), held as (
  update webhooks.backlog b set state = 'held', reason = 'disabled', next_attempt_at = null, since = now()
  from free where b.event_id = free.event_id and b.endpoint_id = $1
)
select max(event_id) as last_event_id from page

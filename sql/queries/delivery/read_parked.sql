-- The oldest deliveries of an endpoint that are parked, or were held and go out again; none while it is disabled.
-- $1 bigint: endpoint id; $2 bigint: after this event_id; $3 int: rows. Lives on backlog_aside, then a step into each
-- event's own day, as in read_due.
with page as materialized (
  select *, event_id / 4294967296 as day from webhooks.backlog
  where endpoint_id = $1 and event_id > $2 and state <> 'waiting' and reason <> 'quarantined'
    and not exists (select from webhooks.endpoints p where p.endpoint_id = $1 and not p.enabled)
  order by event_id
  limit $3
),
--include due_days
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at,
  now() as released_at, b.cause,
  --include due_event
--include due_from
order by b.event_id

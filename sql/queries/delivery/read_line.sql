-- The oldest deliveries of one line of an ordered endpoint, whatever their state. $1 bigint: endpoint id; $2 text:
-- line; $3 int: rows. Lives on backlog_in_line, then a step into each event's own day, as in read_due.
with page as materialized (
  select *, event_id / 4294967296 as day from webhooks.backlog
  where endpoint_id = $1 and line = $2
  order by event_id
  limit $3
),
--include due_days
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at,
  case when b.state = 'waiting' then b.released_at else now() end as released_at, b.cause,
  b.reason <> 'quarantined' and (b.state <> 'waiting' or b.next_attempt_at <= now()) as due,
  --include due_event
--include due_from
order by b.event_id

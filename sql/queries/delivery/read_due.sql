-- A page of deliveries whose time has come, from where the last page ended. $1 timestamptz, $2 bigint, $3 bigint: the
-- last row seen; $4 int: rows. Lives on backlog_due, then a step into the primary key of each event's own day.
with page as materialized (
  select *, event_id / 4294967296 as day from webhooks.backlog
  where state = 'waiting' and next_attempt_at <= now() and (next_attempt_at, event_id, endpoint_id) > ($1, $2, $3)
  order by next_attempt_at, event_id, endpoint_id
  limit $4
),
--include due_days
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at,
  b.released_at, b.line, b.cause,
  --include due_event
--include due_from
order by b.next_attempt_at, b.event_id, b.endpoint_id

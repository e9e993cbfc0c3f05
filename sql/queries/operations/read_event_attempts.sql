-- The attempts of an event, in the order of time. $1 bigint: event_id.
select endpoint_id, attempt, attempted_at, round(duration_ms::numeric, 1)::float8 as duration_ms, outcome, status,
  error
from webhooks.attempts where event_id = $1 order by attempted_at, endpoint_id, attempt

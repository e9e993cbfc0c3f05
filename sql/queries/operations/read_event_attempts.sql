-- The attempts of an event, in the order of time. $1 bigint: event_id.
select p.endpoint_id, d.attempt, d.attempted_at, round(d.duration_ms::numeric, 1)::float8 as duration_ms, d.outcome,
  d.status, d.error, d.cause, d.revision, d.url, d.evidence
from (select distinct endpoint_id from webhooks.attempts where event_id = $1) p
cross join lateral webhooks.delivery_detail($1, p.endpoint_id) d
order by d.attempted_at, p.endpoint_id, d.attempt

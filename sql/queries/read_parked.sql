-- The oldest deliveries of an endpoint that are parked, or were held and go out again; none while it is disabled.
-- $1 bigint: endpoint id; $2 bigint: after this event_id; $3 int: rows. Lives on backlog_aside, then a step into each
-- event's own day, as in read_due.
select b.event_id, b.endpoint_id, b.site_id, b.state, b.reason, b.attempts, b.attempts_before, b.next_attempt_at, now() as released_at,
  e.type, e.created_at, e.endpoint_id as only_endpoint_id, e.event_id is not null as exists,
  case when pg_column_compression(e.payload) is null and pg_column_size(e.payload) <= 16384 then e.payload
       when octet_length(e.payload::text) <= 16384 then e.payload end as payload
from (
  select * from webhooks.backlog
  where endpoint_id = $1 and event_id > $2 and state <> 'waiting' and reason <> 'quarantined'
    and not exists (select from webhooks.endpoints p where p.endpoint_id = $1 and not p.enabled)
  order by event_id
  limit $3) b
left join lateral (select * from webhooks.events where event_id = b.event_id limit 1) e on true
order by b.event_id

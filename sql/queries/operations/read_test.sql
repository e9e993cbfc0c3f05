-- A test event and its first attempt, if that was made. $1 bigint: event_id; $2 bigint: endpoint id.
select k.event_id, webhooks.webhook_id(k.event_id, k.created_at) as webhook_id, $2::bigint as endpoint_id,
  a.attempted_at, a.outcome, a.status, a.error, round(a.duration_ms::numeric, 1)::float8 as duration_ms,
  case when d.event_id is not null then 'dead' else b.state end as state, coalesce(d.reason, b.reason) as reason
from webhooks.events k
left join webhooks.attempts a on a.event_id = $1 and a.endpoint_id = $2 and a.attempt = 1
left join webhooks.dead d on d.event_id = $1 and d.endpoint_id = $2
left join webhooks.backlog b on b.event_id = $1 and b.endpoint_id = $2
where k.event_id = $1

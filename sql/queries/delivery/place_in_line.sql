-- Assigns a line to due deliveries of ordered endpoints that have none; returns their ids and lines. $1 bigint[], $2
-- bigint[]: event and endpoint ids.
update webhooks.backlog b
set line = coalesce((select e.ordering_key from webhooks.events e where e.event_id = b.event_id limit 1), '')
from unnest($1::bigint[], $2::bigint[]) as u(event_id, endpoint_id)
where b.event_id = u.event_id and b.endpoint_id = u.endpoint_id
returning b.endpoint_id, b.line

-- Deliveries that are settled for good leave the backlog. $1 bigint[], $2 bigint[]: event and endpoint ids.
delete from webhooks.backlog b
using unnest($1::bigint[], $2::bigint[]) as u(event_id, endpoint_id)
where b.event_id = u.event_id and b.endpoint_id = u.endpoint_id

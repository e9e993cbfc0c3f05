-- Deletes incidents that are over. $1 bigint[]: endpoint ids; $2 timestamptz[]: the latest known failure.
delete from webhooks.incidents i
using unnest($1::bigint[], $2::timestamptz[]) as u(endpoint_id, last_failure_at)
where i.endpoint_id = u.endpoint_id and i.last_failure_at = u.last_failure_at
returning i.endpoint_id

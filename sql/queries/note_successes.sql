-- Endpoints with an incident that answered 2xx in a batch. $1 bigint[]: endpoint ids; $2, $3 timestamptz[]: first and
-- last 2xx; $4 bigint[]: how many.
update webhooks.incidents i set
  last_success_at = greatest(i.last_success_at, u.last_at),
  recovering_at = coalesce(i.recovering_at, u.first_at),
  successes = i.successes + u.successes,
  next_look_at = case when i.recovering_at is null then least(i.next_look_at, u.first_at) else i.next_look_at end
from unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::bigint[]) as u(endpoint_id, first_at, last_at, successes)
where i.endpoint_id = u.endpoint_id and i.state <> 'healthy'

-- Writes the decisions of one check. $1 bigint[]: endpoint ids; $2 text[]: states; $3 text[]: marks, JSON; $4 bool[]:
-- whether a window has closed over the failures so far; $5 timestamptz[]: the latest known failure; $6 timestamptz[]:
-- when the endpoint will be disabled; $7 timestamptz: now; $8 timestamptz: time of the next check; $9 text[]: the marks
-- that the decision is based on, JSON. A row is left out if another check has written other marks meanwhile, or if it
-- recovers and has failed meanwhile.
update webhooks.incidents i set
  state = u.state, marks = u.marks::jsonb, disable_at = u.disable_at, next_look_at = $8,
  window_at = case when u.closed and i.window_at <= $7 then null else i.window_at end
from unnest($1::bigint[], $2::text[], $3::text[], $4::bool[], $5::timestamptz[], $6::timestamptz[], $9::text[])
  as u(endpoint_id, state, marks, closed, last_failure_at, disable_at, was)
where i.endpoint_id = u.endpoint_id and (u.state <> 'healthy' or i.last_failure_at = u.last_failure_at)
  and i.marks = u.was::jsonb
returning i.endpoint_id

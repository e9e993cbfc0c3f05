-- Returns those of some endpoints that have rows in backlog: a change of the others has no effect. $1 bigint[]:
-- endpoint ids. Lives on backlog_of_endpoint, one step for each id.
select u.endpoint_id
from unnest($1::bigint[]) as u(endpoint_id)
cross join lateral (select from webhooks.backlog b where b.endpoint_id = u.endpoint_id limit 1) b

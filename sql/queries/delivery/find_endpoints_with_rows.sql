-- Which of these endpoints have rows in backlog: what may have changed matters only then. $1 bigint[]: endpoint ids. Lives
-- on backlog_of_endpoint, one step for each id.
select u.endpoint_id
from unnest($1::bigint[]) as u(endpoint_id)
cross join lateral (select from webhooks.backlog b where b.endpoint_id = u.endpoint_id limit 1) b

-- Settled deliveries of some events, as read_settled, for ids with many settled deliveries between them. $1 bigint[]:
-- ids; $2 bigint, $3 bigint: the first and the last of them; $4 bigint, $5 bigint: after which endpoint id and up to
-- which. Lives on attempts_once and the two primary keys. The bounds keep it to the days concerned, and + 0 keeps the
-- planner from searching by endpoint. Backlog and dead are stepped into for each id, in an order that the primary key
-- alone has: a plan made while they are empty would walk all of the index by endpoint.
select event_id, endpoint_id from webhooks.attempts
where event_id between $2 and $3 and event_id = any ($1) and outcome = 'delivered'
  and endpoint_id + 0 > $4 and endpoint_id + 0 <= $5
union all
select b.event_id, b.endpoint_id
from unnest($1::bigint[]) i
cross join lateral (
  select event_id, endpoint_id from webhooks.backlog
  where (event_id, endpoint_id) > (i, $4) and (event_id, endpoint_id) <= (i, $5)
  order by event_id, endpoint_id
  offset 0) b
union all
select d.event_id, d.endpoint_id
from unnest($1::bigint[]) i
cross join lateral (
  select event_id, endpoint_id from webhooks.dead
  where event_id between $2 and $3 and (event_id, endpoint_id) > (i, $4) and (event_id, endpoint_id) <= (i, $5)
  order by event_id, endpoint_id
  offset 0) d

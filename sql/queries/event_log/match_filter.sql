-- Returns the events that the filters of endpoints leave out (false) or cannot decide (null). A payload of more than 1
-- MB is not evaluated (null). $1 bigint[], $2 bigint[]: event and endpoint ids. A step into each event's own day, as in
-- read_due; a filter is evaluated once for each: offset 0 keeps it where it is.
select u.event_id, u.endpoint_id, m.says
from unnest($1::bigint[], $2::bigint[]) as u(event_id, endpoint_id)
join webhooks.endpoints p on p.endpoint_id = u.endpoint_id and p.filter is not null
cross join lateral (select payload from webhooks.events where event_id = u.event_id limit 1) e
cross join lateral (
  select case when octet_length(e.payload::text) <= 1000000 then webhooks.matches(e.payload, p.filter) end as says
  offset 0) m
where m.says is not true

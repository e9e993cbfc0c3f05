-- Which events the filter of an endpoint leaves out: those of which it is clearly false. A payload of more than 1 MB is
-- not looked at. $1 bigint[]: event ids; $2 bigint: endpoint id. A step into each event's own day, as in read_due.
select u.event_id
from unnest($1::bigint[]) as u(event_id)
join webhooks.endpoints p on p.endpoint_id = $2
cross join lateral (select payload from webhooks.events where event_id = u.event_id limit 1) e
where p.filter is not null
  and case when octet_length(e.payload::text) <= 1000000 then webhooks.matches(e.payload, p.filter) end is false

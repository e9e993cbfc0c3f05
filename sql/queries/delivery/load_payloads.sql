-- Payloads that did not travel with their page. $1 bigint[]: event ids, of which the payloads have at most 100,000
-- bytes in all. Lives on the primary key of each event's own day.
select u.event_id, e.payload
from unnest($1::bigint[]) as u(event_id)
cross join lateral (select v.payload from webhooks.events v where v.event_id = u.event_id limit 1) e

-- The payload of an event, whatever its size. $1 bigint: event_id.
select payload from webhooks.events where event_id = $1

-- The deliveries of an event. $1 bigint: event_id.
select endpoint_id, state, reason, attempts, next_attempt_at from webhooks.deliveries
where event_id = $1 order by endpoint_id

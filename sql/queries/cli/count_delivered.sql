-- Counts the deliveries of some events that were delivered. $1 bigint[]: event ids.
select count(*) from webhooks.attempts where outcome = 'delivered' and event_id = any ($1::bigint[])

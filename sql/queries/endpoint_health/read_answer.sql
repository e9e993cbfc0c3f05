-- The answer of an endpoint to one attempt. $1 bigint, $2 bigint, $3 smallint: event, endpoint, attempt. Lives on
-- attempts_once.
select response from webhooks.attempts where event_id = $1 and endpoint_id = $2 and attempt = $3

-- The answers that were kept with the attempts of an event. $1 bigint: event_id. Lives on attempts_once.
select endpoint_id, attempt, response from webhooks.attempts where event_id = $1 and response is not null

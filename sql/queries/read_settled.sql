-- What is settled already between two ids: delivered, in backlog, or dead. Read once a page on the recovery road.
-- $1 bigint, $2 bigint: first and last event_id of the page. Lives on attempts_once and the two primary keys.
select event_id, endpoint_id from webhooks.attempts where event_id between $1 and $2 and outcome = 'delivered'
union all
select event_id, endpoint_id from webhooks.backlog where event_id between $1 and $2
union all
select event_id, endpoint_id from webhooks.dead where event_id between $1 and $2

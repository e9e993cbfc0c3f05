-- What is settled already of some events: as read_settled. $1 bigint[]: ids; $2 bigint, $3 bigint: the first and the last
-- of them. Lives on attempts_once and the two primary keys; the bounds keep it to the days concerned.
select event_id, endpoint_id from webhooks.attempts
where event_id between $2 and $3 and event_id = any ($1) and outcome = 'delivered'
union all
select event_id, endpoint_id from webhooks.backlog where event_id between $2 and $3 and event_id = any ($1)
union all
select event_id, endpoint_id from webhooks.dead where event_id between $2 and $3 and event_id = any ($1)

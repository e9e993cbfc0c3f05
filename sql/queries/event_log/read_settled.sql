-- Deliveries between two ids that are settled already: delivered, in backlog, or dead. Read during recovery, and for
-- events that were left in the log. $1 bigint, $2 bigint: first and last event_id; $3 int: rows; a caller that gets as
-- many has not got all. Lives on attempts_once and the two primary keys, whose order no other index has.
(select event_id, endpoint_id from webhooks.attempts
 where event_id between $1 and $2 and outcome = 'delivered'
 order by event_id, endpoint_id, attempt limit $3)
union all
(select event_id, endpoint_id from webhooks.backlog where event_id between $1 and $2 order by event_id, endpoint_id limit $3)
union all
(select event_id, endpoint_id from webhooks.dead where event_id between $1 and $2 order by event_id, endpoint_id limit $3)

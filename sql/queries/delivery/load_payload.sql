-- A payload too large to travel with its page, read when it is sent.
-- $1 bigint: event_id; $2 int: bytes allowed; over it null.
select case when octet_length(payload::text) <= $2 then payload end as payload, octet_length(payload::text) as bytes
from webhooks.events where event_id = $1

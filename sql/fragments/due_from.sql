-- A page of backlog with its events, each by a step into the primary key of its own day: joined plainly, the planner
-- adds up a step into every day and reads all events instead.
from page b
left join lateral (
  select e.*, case when
    --include payload_is_inline
    then octet_length(e.payload::text) end as payload_bytes
  from webhooks.events e where e.event_id = b.event_id limit 1) e on true

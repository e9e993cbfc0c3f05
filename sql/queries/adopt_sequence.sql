-- Moves the sequence beyond the greatest id there is, forward only; returns that id.
select coalesce(m.id, 0) as highest, case when m.id > s.last_value then setval('webhooks.events_event_id_seq', m.id) end as moved
from webhooks.events_event_id_seq s, (select max(event_id) as id from webhooks.events) m

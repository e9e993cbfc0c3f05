-- Returns true if there is a partition for the next event.
select exists (
  select from pg_inherits i
  where i.inhrelid = to_regclass('webhooks.events_' || (s.last_value + s.is_called::int) / 4294967296)
)
from webhooks.events_event_id_seq s

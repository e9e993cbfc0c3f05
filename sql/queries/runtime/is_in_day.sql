-- Returns true if ids are drawn from a day, or from a later one. $1 int: the day.
select last_value >= $1::int * 4294967296 from webhooks.events_event_id_seq

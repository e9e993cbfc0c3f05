-- The day that ids are drawn from, and the latest day on which one of the newest events was made (null: no events). Lives
-- on the primary key of events.
select (select (last_value / 4294967296)::int from webhooks.events_event_id_seq) as id_day,
  (select webhooks.day_of(max(e.created_at))
   from (select created_at from webhooks.events order by event_id desc limit 100) e) as event_day

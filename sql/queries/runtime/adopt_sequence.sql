-- Moves the sequence beyond the greatest id there is, forward only; returns that id. No lock keeps producers from
-- drawing meanwhile, so that a few missing ids are drawn, and beyond many a million is left out: never does it go back.
with greatest_id as (select coalesce(max(event_id), 0) as id from webhooks.events),
gap as (
  select m.id, m.id - s.last_value + (not s.is_called)::int as missing
  from greatest_id m, webhooks.events_event_id_seq s
)
select id as highest,
  case when missing > 1000000 then setval('webhooks.events_event_id_seq', id + 1000000)
    when missing > 0 then (select max(nextval('webhooks.events_event_id_seq')) from generate_series(1, missing)) end as moved
from gap

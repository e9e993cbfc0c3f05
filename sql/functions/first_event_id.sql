-- Where a replay with `since` begins to read the log.
-- needs: day_of
create or replace function webhooks.first_event_id(since timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan as $$
declare
  day bigint;
  first timestamptz;
begin
  -- The sequence enters a day late where nobody moves it: a day whose first event is later than that had its events before.
  for day in
    select substr(c.relname, 8)::bigint from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'webhooks.events'::regclass and c.relname ~ '^events_[0-9]+$'
      and substr(c.relname, 8)::bigint <= webhooks.day_of(since)
    order by 1 desc
  loop
    select e.created_at into first from webhooks.events e
    where e.event_id >= day * 4294967296 and e.event_id < (day + 1) * 4294967296 order by e.event_id limit 1;
    if first < since - interval '1 hour' then
      return day * 4294967296;
    end if;
  end loop;
  return 0;
end $$;
comment on function webhooks.first_event_id is
  'No event that was made since then has a lesser id, long transactions apart';

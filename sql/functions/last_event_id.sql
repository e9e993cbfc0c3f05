-- Where the log of a site begins to read for `until`: an id of an hour later, searched by halves among the ids of three
-- days. An event gets its id after the beginning of its transaction, from which created_at is. Lives on the primary key
-- of events.
-- needs: day_of
create or replace function webhooks.last_event_id(until timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  low bigint := greatest(0, webhooks.day_of(until) - 1) * 4294967296;
  high bigint := (greatest(0, webhooks.day_of(until)) + 2) * 4294967296;
  middle bigint;
begin
  while high - low > 1000 loop
    middle := (low + high) / 2;
    if (select e.created_at from webhooks.events e where e.event_id >= middle and e.event_id < high
        order by e.event_id limit 1) < until + interval '1 hour' then
      low := middle;
    else
      high := middle;
    end if;
  end loop;
  return high - 1;
end $$;
comment on function webhooks.last_event_id is
  'No event that was made before then has a greater id, transactions apart that insert an hour after they began';

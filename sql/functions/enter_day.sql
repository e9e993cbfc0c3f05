-- Moves the sequence of event ids into a day, once no open transaction may fail to know its partition.
-- Lock: MAINTENANCE (1885825131, -3).
create or replace function webhooks.enter_day(day int) returns boolean
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  if not pg_try_advisory_xact_lock(1885825131, -3) then  -- two at once could move it backward: not even into the same day
    return false;
  end if;
  perform setval('webhooks.events_event_id_seq', enter_day.day * 4294967296, false)
  from webhooks.partitions p, webhooks.events_event_id_seq s
  where p.day = enter_day.day and s.last_value < enter_day.day * 4294967296
    and exists (select from pg_inherits where inhrelid = to_regclass('webhooks.events_' || p.day) and not inhdetachpending)
    and not exists (
      select from pg_locks
      where relation = 'webhooks.events'::regclass and mode = 'RowExclusiveLock' and virtualtransaction = any (p.holders)
        and pid is not null);  -- one that was prepared meanwhile still shows its virtualtransaction
  return found;
end $$;
comment on function webhooks.enter_day is
  'Moves the sequence forward into a day, once nobody is left who may not know its partition';

-- Notes the transactions that may not know a day's new partition, in a later transaction than attach_day.
create or replace function webhooks.note_day(day int) returns void
language sql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  insert into webhooks.partitions (day, holders)
  select note_day.day, coalesce(array_agg(virtualtransaction), '{}')
  from pg_locks
  where relation = 'webhooks.events'::regclass and mode = 'RowExclusiveLock' and granted
    and pid is not null  -- a prepared transaction can insert no more
    and database = (select oid from pg_database where datname = current_database())
  on conflict do nothing
$$;
comment on function webhooks.note_day is
  'After attach_day has committed: notes the producers that are open and may not know the new partition';

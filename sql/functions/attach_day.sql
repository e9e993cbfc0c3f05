-- Makes the partitions of one day apart from their parents, then attaches them: no producer waits. The day is used only
-- after note_day and enter_day.
create or replace function webhooks.attach_day(day int) returns boolean
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  parent text;
  child text;
  made boolean := false;
begin
  perform set_config('lock_timeout', '2s', true);
  foreach parent in array array['attempts', 'dead', 'events'] loop  -- events last: an event is never without the others
    child := format('%s_%s', parent, day);
    if exists (select from pg_inherits where inhrelid = to_regclass('webhooks.' || child)) then
      continue;
    end if;
    if to_regclass('webhooks.' || child) is not null then
      execute format('drop table webhooks.%I', child);  -- made, but not attached before a crash
    end if;
    execute format('create table webhooks.%I (like webhooks.%I including defaults including constraints including indexes'
      ' including compression including storage) with (autovacuum_freeze_min_age = 0,'
      ' autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000)', child, parent);
    execute format('alter table webhooks.%I attach partition webhooks.%I for values from (%s) to (%s)',
      parent, child, day * 4294967296, (day + 1) * 4294967296);
    made := true;
  end loop;
  return made;
end $$;
comment on function webhooks.attach_day is
  'Makes the partitions of one day; blocks no producer. note_day must follow in a later transaction';

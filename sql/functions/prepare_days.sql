-- Makes the first partitions of a new schema. Elsewhere it does nothing: attaching and noting take two transactions
-- there.
-- needs: attach_day, day_of, enter_day, note_day
create or replace function webhooks.prepare_days(days int default 8) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  -- Only for a schema that has no producers yet: elsewhere attaching and noting are two transactions.
  if exists (select from webhooks.partitions) then
    return;
  end if;
  for d in webhooks.day_of() .. webhooks.day_of() + days - 1 loop
    perform webhooks.attach_day(d);
    perform webhooks.note_day(d);
  end loop;
  perform webhooks.enter_day(webhooks.day_of());
end $$;

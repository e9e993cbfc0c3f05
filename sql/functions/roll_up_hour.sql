-- The daemon's step of webhooks.endpoint_activity: counts the attempts of the next hour, once. An hour waits until its
-- grace is over, and until ids are drawn from its day: a clock that is wrong by days counts no hours.
-- needs: count_attempts, day_of
create or replace function webhooks.roll_up_hour(grace interval) returns timestamptz
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp
set lock_timeout = '200ms' set work_mem = '64MB' as $$
declare
  due timestamptz;
begin
  select u.next_hour into due from webhooks.upkeep u
  where u.what = 'activity' and u.next_hour + interval '1 hour' + grace <= now()
    and webhooks.day_of(u.next_hour) <= (select s.last_value / 4294967296 from webhooks.events_event_id_seq s)
  for update skip locked;
  if due is null then
    return null;
  end if;
  begin  -- pages that are not summarized are read for any time
    perform brin_summarize_new_values(i.inhrelid) from pg_inherits i
    where i.inhparent = 'webhooks.attempts_by_time'::regclass;
  exception when lock_not_available or undefined_table or internal_error then
    null;  -- a partition is being vacuumed or removed: the next hour does it
  end;
  insert into webhooks.endpoint_hours select * from webhooks.count_attempts(due, due + interval '1 hour');
  update webhooks.upkeep set next_hour = due + interval '1 hour' where what = 'activity';
  return due;
end $$;
comment on function webhooks.roll_up_hour is
  'Counts the attempts of the next finished hour into endpoint_hours, and returns the hour; null: nothing is due. The '
  'daemon''s own';

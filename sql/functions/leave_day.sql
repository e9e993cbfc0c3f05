-- Marks a day as leaving, if nothing keeps it: a replay that starts afterwards leaves it alone. Returns the reasons
-- that keep it. The daemon's own.
-- needs: why_kept
create or replace function webhooks.leave_day(day int) returns text[]
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set lock_timeout = '200ms' as $$
declare
  reasons text[];
begin
  lock table webhooks.replays in exclusive mode;  -- one that is being started is waited for, and seen
  reasons := webhooks.why_kept(leave_day.day);
  if reasons = '{}' then
    update webhooks.partitions p set leaving_at = now() where p.day = leave_day.day and p.leaving_at is null;
  end if;
  return reasons;
end $$;
comment on function webhooks.leave_day is
  'Marks a day as leaving, and returns the reasons (why_kept) if it has to stay instead. The daemon''s own';

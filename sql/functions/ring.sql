-- The doorbell's trigger. Only a sleeping daemon holds its lock exclusively. The shared try fails only then, and only
-- then the producer pays for a NOTIFY. webhooks.bell is read after the try, so that a producer that has switched it off
-- is waited for like the others.
-- Lock: BELL (1885825131, 0).
create or replace function webhooks.ring() returns trigger language plpgsql as $$
begin
  if current_setting('webhooks.bell', true) is distinct from 'off' then
    notify pghookd;
  end if;
  return null;
end $$;

create or replace trigger bell after insert on webhooks.events
  for each statement when (not pg_try_advisory_xact_lock_shared(1885825131, 0)) execute function webhooks.ring();

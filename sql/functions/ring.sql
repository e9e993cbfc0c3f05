-- Wakes the sleeping daemon. webhooks.bell is read here, after the trigger has tried the lock, so that a producer that
-- has switched the bell off is waited for like the others.
create or replace function webhooks.ring() returns trigger language plpgsql as $$
begin
  if current_setting('webhooks.bell', true) is distinct from 'off' then
    notify pghookd;
  end if;
  return null;
end $$;

-- Rings the doorbell after a producer's insert. Only a sleeping daemon holds the bell's lock exclusively. The shared
-- try fails only then, and only then the producer pays for a NOTIFY.
-- Lock: BELL (1885825131, 0).
-- needs: ring
create or replace trigger bell after insert on webhooks.events
  for each statement when (not pg_try_advisory_xact_lock_shared(1885825131, 0)) execute function webhooks.ring();

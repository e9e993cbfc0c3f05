-- Notifies the daemon of the endpoints that a statement added: it judges them at once.
-- needs: endpoints_changed
create or replace trigger endpoints_added after insert on webhooks.endpoints
  referencing new table as changed for each statement execute function webhooks.endpoints_changed();

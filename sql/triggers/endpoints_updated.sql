-- Notifies the daemon of the endpoints that a statement changed.
-- needs: endpoints_changed
create or replace trigger endpoints_updated after update on webhooks.endpoints
  referencing new table as changed for each statement execute function webhooks.endpoints_changed();

-- Notifies the daemon of the endpoints that a statement deleted.
-- needs: endpoints_changed
create or replace trigger endpoints_deleted after delete on webhooks.endpoints
  referencing old table as changed for each statement execute function webhooks.endpoints_changed();

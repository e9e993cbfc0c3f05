-- Refuses event types that can never match.
-- needs: check_event_types
create or replace trigger endpoints_types_checked before insert or update of event_types on webhooks.endpoints
  for each row execute function webhooks.check_event_types();

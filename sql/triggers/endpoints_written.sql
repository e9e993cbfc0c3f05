-- Fills in what an endpoint records of itself: its first event, when and why it was switched off.
-- needs: endpoint_changes
create or replace trigger endpoints_written before insert or update on webhooks.endpoints
  for each row execute function webhooks.endpoint_changes();

-- Records what each statement changed of an endpoint.
-- needs: note_revision
create or replace trigger endpoints_revised after insert or update or delete on webhooks.endpoints
  for each row execute function webhooks.note_revision();

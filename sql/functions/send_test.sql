-- Sends a test event to one endpoint, for operators.
create or replace function webhooks.send_test(endpoint_id bigint, type text default 'webhook_test') returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  p webhooks.endpoints;
  sample jsonb;
  made bigint;
begin
  if type is null or type !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' or length(type) > 128 then
    raise exception 'a type is identifiers joined by dots, at most 128 characters, not %', coalesce(type, 'null')
      using errcode = 'invalid_parameter_value';
  end if;
  select * into p from webhooks.endpoints e where e.endpoint_id = send_test.endpoint_id;
  if not found then
    raise exception 'there is no endpoint %', coalesce(endpoint_id::text, 'null') using errcode = 'no_data_found';
  elsif not p.enabled then  -- its events are held, so that a test would come when nobody waits for it
    raise exception 'endpoint % is disabled (%): enable it first', endpoint_id, p.disabled_reason
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  select t.example into sample from webhooks.event_types t
  where t.name = send_test.type and json_typeof(t.example) = 'object';
  insert into webhooks.events (site_id, type, payload, endpoint_id)
  values (p.site_id, send_test.type,
    coalesce(sample, '{"message": "This is a test: nothing has happened."}') || '{"test": true}', p.endpoint_id)
  returning events.event_id into made;
  insert into webhooks.operations (what, detail)
  values ('send_test', jsonb_build_object('endpoint_id', p.endpoint_id, 'type', send_test.type, 'event_id', made));
  return made;
end $$;
comment on function webhooks.send_test is
  'Sends an event to this endpoint alone, whatever types and filters it has: the catalogue''s example with "test": '
  'true. It is tried once, and no mail speaks of it';

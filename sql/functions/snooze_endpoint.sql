-- Stops emails about an endpoint for a while, for operators.
create or replace function webhooks.snooze_endpoint(endpoint_id bigint, until timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  perform set_config('webhooks.recorded', 'on', true);
  update webhooks.endpoints e set snoozed_until = until where e.endpoint_id = snooze_endpoint.endpoint_id;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  insert into webhooks.operations (what, detail)
  values ('snooze_endpoint', jsonb_build_object('endpoint_id', snooze_endpoint.endpoint_id, 'until', until));
  perform set_config('webhooks.recorded', 'off', true);
end $$;
comment on function webhooks.snooze_endpoint is 'No mails about an endpoint until then; null: mails again';

-- Switches an endpoint off, for operators. The daemon holds its rows in backlog afterwards, page by page.
create or replace function webhooks.disable_endpoint(endpoint_id bigint, reason text default 'operator') returns void
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  perform set_config('webhooks.recorded', 'on', true);
  update webhooks.endpoints e set enabled = false, disabled_reason = reason
  where e.endpoint_id = disable_endpoint.endpoint_id and e.enabled;
  if found then
    insert into webhooks.operations (what, detail)
    values ('disable_endpoint', jsonb_build_object('endpoint_id', disable_endpoint.endpoint_id, 'reason', reason));
  elsif not exists (select from webhooks.endpoints e where e.endpoint_id = disable_endpoint.endpoint_id) then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  perform set_config('webhooks.recorded', 'off', true);
end $$;
comment on function webhooks.disable_endpoint is 'Switches an endpoint off; its events are held';

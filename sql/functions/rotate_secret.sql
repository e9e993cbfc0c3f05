-- Gives an endpoint a new secret, for operators; the previous one also signs for a while.
-- needs: new_secret
create or replace function webhooks.rotate_secret(endpoint_id bigint, overlap interval default '24 hours', secret text default null) returns text
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  old text;
  kind text;
  fresh text := rotate_secret.secret;
  broken text;
begin
  if overlap is null or overlap < interval '0' or overlap > interval '30 days' then
    raise exception 'overlap is 0 to 30 days, not %', overlap using errcode = 'invalid_parameter_value';
  end if;
  select e.secret, e.secret_kind into old, kind from webhooks.endpoints e where e.endpoint_id = rotate_secret.endpoint_id for update;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  if fresh is null then  -- of the kind that the endpoint has; any 32 bytes are an Ed25519 private key
    fresh := webhooks.new_secret();
    if old like 'whsk\_%' or (old like 'enc:%' and kind = 'ed25519') then
      fresh := 'whsk_' || substr(fresh, 7);
    end if;
  elsif fresh = old then
    raise exception 'that is the secret of endpoint % already', endpoint_id using errcode = 'invalid_parameter_value';
  end if;
  perform set_config('webhooks.recorded', 'on', true);
  begin
    update webhooks.endpoints e
    set secret = fresh,
      previous_secret = case when overlap > interval '0' then old end,
      previous_secret_until = case when overlap > interval '0' and old is not null then now() + overlap end
    where e.endpoint_id = rotate_secret.endpoint_id;
  exception when check_violation then  -- its own message shows the row, secrets and all
    get stacked diagnostics broken = constraint_name;
    raise exception 'the secret cannot be used: %', broken using errcode = 'check_violation', constraint = broken;
  end;
  perform set_config('webhooks.recorded', 'off', true);
  insert into webhooks.operations (what, detail)
  values ('rotate_secret', jsonb_build_object('endpoint_id', rotate_secret.endpoint_id, 'overlap', overlap::text));
  return fresh;
end $$;
comment on function webhooks.rotate_secret is
  'Gives an endpoint a new secret and returns it; the old one signs beside it for as long as overlap says';

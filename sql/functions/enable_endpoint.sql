-- Switches an endpoint on, for operators, and decides about its held events. Every row of a disabled endpoint counts as
-- held, written so or not yet.
create or replace function webhooks.enable_endpoint(endpoint_id bigint, held text default 'deliver') returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  was_enabled boolean;
  kept bigint;
begin
  if held not in ('deliver', 'drop', 'latest_per_key') then
    raise exception 'held is deliver, drop or latest_per_key, not %', held using errcode = 'invalid_parameter_value';
  end if;
  select e.enabled into was_enabled from webhooks.endpoints e
  where e.endpoint_id = enable_endpoint.endpoint_id for update;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  -- Of a disabled endpoint every row counts as held, written so or not yet.
  if held <> 'deliver' then
    with aside as (  -- of each key all but the newest; an event without a key has none that is newer
      select b.event_id, e.ordering_key is not null
        and row_number() over (partition by e.ordering_key order by b.event_id desc) > 1 as is_old
      from webhooks.backlog b
      left join lateral (select v.ordering_key from webhooks.events v where v.event_id = b.event_id limit 1) e on true
      where b.endpoint_id = enable_endpoint.endpoint_id and b.reason <> 'quarantined'
        and (b.state = 'held' or not was_enabled)
    ), gone as (
      delete from webhooks.backlog b using aside a
      where b.endpoint_id = enable_endpoint.endpoint_id and b.event_id = a.event_id and (held = 'drop' or a.is_old)
      returning b.event_id, b.endpoint_id, b.site_id, b.attempts)
    insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
    select g.event_id, g.endpoint_id, g.site_id, 'dropped', g.attempts from gone g
    on conflict do nothing;
  end if;
  select count(*) into kept from webhooks.backlog b
  where b.endpoint_id = enable_endpoint.endpoint_id and b.reason <> 'quarantined'
    and (b.state = 'held' or not was_enabled);
  perform set_config('webhooks.recorded', 'on', true);
  update webhooks.endpoints e set enabled = true where e.endpoint_id = enable_endpoint.endpoint_id and not e.enabled;
  perform set_config('webhooks.recorded', 'off', true);
  insert into webhooks.operations (what, detail)
  values ('enable_endpoint', jsonb_build_object('endpoint_id', enable_endpoint.endpoint_id, 'held', held, 'released', kept));
  return kept;
end $$;
comment on function webhooks.enable_endpoint is
  'Switches an endpoint on, and releases or drops its held events; returns how many go out';

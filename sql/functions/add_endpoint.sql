-- Registers an endpoint, for commands: an act that is recorded in operations. A plain INSERT does as well.
create or replace function webhooks.add_endpoint(site_id text, url text, options jsonb default '{}', out endpoint_id bigint, out secret text)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  allowed constant text[] := '{event_types,secret,description,concurrency,rate_per_s,ordered,filter,timeout_s,retry_schedule,headers,success_statuses,profile,profile_spec,auth}';
  unknown text := (select string_agg(name, ', ' order by name) from jsonb_object_keys(options) name where name <> all (allowed));
begin
  if unknown is not null then
    raise exception 'an endpoint is not added with %; it may have %', unknown, array_to_string(allowed, ', ')
      using errcode = 'invalid_parameter_value';
  end if;
  insert into webhooks.endpoints as p (site_id, url, event_types, secret, description, concurrency, rate_per_s, ordered,
    filter, timeout_s, retry_schedule, headers, success_statuses, profile, profile_spec, auth)
  select add_endpoint.site_id, add_endpoint.url, coalesce(r.event_types, '{*}'), r.secret, r.description, r.concurrency,
    r.rate_per_s, coalesce(r.ordered, false), r.filter, r.timeout_s, r.retry_schedule, coalesce(r.headers, '{}'),
    r.success_statuses, coalesce(r.profile, 'standard'), r.profile_spec, r.auth
  from jsonb_populate_record(null::webhooks.endpoints, options) r
  returning p.endpoint_id, p.secret into add_endpoint.endpoint_id, add_endpoint.secret;
  insert into webhooks.operations (what, detail)
  values ('add_endpoint', jsonb_build_object('endpoint_id', add_endpoint.endpoint_id, 'site_id', add_endpoint.site_id));
end $$;
comment on function webhooks.add_endpoint is
  'Registers an endpoint, with options by the names of its columns, and writes it to operations. Returns its id and '
  'secret';

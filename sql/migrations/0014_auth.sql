-- How requests identify themselves: the column auth gets its effect, and lies encrypted as secrets do.
-- What SQL cannot judge (whether PEM is a certificate, and the key its own) is judged when it is used.
-- min_daemon: 0.1.0

alter table webhooks.endpoints
  add constraint "auth is an object of at most 16000 bytes, or encrypted" check (
    case jsonb_typeof(auth) when 'object' then octet_length(auth::text) <= 16000
      when 'string' then left(auth #>> '{}', 7) = 'enc:v1:' and length(auth #>> '{}') <= 24000
      else auth is null end),
  add constraint "auth is basic, bearer or oauth2, and client_certificate" check (
    case when jsonb_typeof(auth) = 'object' then
      auth - '{basic,bearer,oauth2,client_certificate}'::text[] = '{}' and auth <> '{}'
      and (auth ? 'basic')::int + (auth ? 'bearer')::int + (auth ? 'oauth2')::int <= 1
      and not jsonb_path_exists(auth, '$.* ? (@.type() != "object")') end),
  add constraint "auth.basic is username and password, the one without a colon" check (
    case when jsonb_typeof(auth -> 'basic') = 'object' then
      (auth -> 'basic') - '{username,password}'::text[] = '{}' and (auth -> 'basic') ?& '{username,password}'
      and not jsonb_path_exists(auth, '$.basic.* ? (@.type() != "string" || !(@ like_regex "^[^\\x00-\\x1f\\x7f-\\x9f]*$"))')
      and greatest(length(auth #>> '{basic,username}'), length(auth #>> '{basic,password}')) <= 2048
      and position(':' in auth #>> '{basic,username}') = 0 end),
  add constraint "auth.bearer is a token of RFC 6750" check (
    case when jsonb_typeof(auth -> 'bearer') = 'object' then
      (auth -> 'bearer') - '{token}'::text[] = '{}' and (auth -> 'bearer') ? 'token'
      and jsonb_typeof(auth #> '{bearer,token}') = 'string'
      and auth #>> '{bearer,token}' ~ '^[-A-Za-z0-9._~+/]+=*$' and length(auth #>> '{bearer,token}') <= 8192 end),
  add constraint "auth.oauth2 is token_url (https), client_id and client_secret" check (
    case when jsonb_typeof(auth -> 'oauth2') = 'object' then
      (auth -> 'oauth2') - '{token_url,client_id,client_secret,scope,audience}'::text[] = '{}'
      and (auth -> 'oauth2') ?& '{token_url,client_id,client_secret}'
      and not jsonb_path_exists(auth, '$.oauth2.* ? (@.type() != "string" || !(@ like_regex "^[^\\x00-\\x1f\\x7f-\\x9f]*$"))')
      and auth #>> '{oauth2,token_url}' ~* '^https://[!-~]+$'
      and greatest(length(auth #>> '{oauth2,token_url}'), length(auth #>> '{oauth2,client_id}'), length(auth #>> '{oauth2,client_secret}'),
        length(auth #>> '{oauth2,scope}'), length(auth #>> '{oauth2,audience}')) <= 2048
      and auth #>> '{oauth2,client_id}' <> '' and auth #>> '{oauth2,client_secret}' <> '' end),
  add constraint "auth.client_certificate is PEM, certificate and key, for https" check (
    case when jsonb_typeof(auth -> 'client_certificate') = 'object' then
      (auth -> 'client_certificate') - '{certificate,key}'::text[] = '{}'
      and (auth -> 'client_certificate') ?& '{certificate,key}'
      and jsonb_typeof(auth #> '{client_certificate,certificate}') = 'string'
      and jsonb_typeof(auth #> '{client_certificate,key}') = 'string'
      and auth #>> '{client_certificate,certificate}' like '%-----BEGIN CERTIFICATE-----%'
      and auth #>> '{client_certificate,key}' like '%-----BEGIN %PRIVATE KEY-----%'
      and url ~* '^https:' end);
comment on column webhooks.endpoints.auth is 'How requests identify themselves: an object with basic {username, password}, bearer {token} or oauth2 {token_url, client_id, client_secret, scope, audience}, and beside it or alone client_certificate {certificate, key}, both PEM; "enc:v1:...": the same, encrypted by the daemon, which does so where it has secrets.key; null: in no way';

-- What is still to be encrypted; all, where there is no key.
drop index webhooks.endpoints_plain;
create index endpoints_plain on webhooks.endpoints (endpoint_id)
  where left(secret, 7) <> 'enc:v1:' or left(previous_secret, 7) <> 'enc:v1:' or jsonb_typeof(auth) = 'object';

-- As before, and auth beside the secrets; who says nothing of auth leaves it as it is.
drop function webhooks.wrap_secrets;
create function webhooks.wrap_secrets(
  endpoint_ids bigint[], seen text[], wrapped text[], seen_previous text[], wrapped_previous text[], kinds text[],
  seen_auth text[] default null, wrapped_auth text[] default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  bell constant text := coalesce(current_setting('webhooks.bell', true), '');
  done bigint;
begin
  if exists (select from unnest(wrapped || wrapped_previous || wrapped_auth) w where left(w, 7) <> 'enc:v1:') then
    raise exception 'wrap_secrets takes nothing but encrypted secrets' using errcode = 'invalid_parameter_value';
  end if;
  perform set_config('webhooks.bell', 'off', true);
  update webhooks.endpoints p
  set secret = u.wrapped, previous_secret = u.wrapped_previous, secret_kind = u.kind,
    auth = case when wrap_secrets.seen_auth is null then p.auth else to_jsonb(u.wrapped_auth) end
  from unnest(endpoint_ids, seen, wrapped, seen_previous, wrapped_previous, kinds, seen_auth, wrapped_auth)
    as u(endpoint_id, seen, wrapped, seen_previous, wrapped_previous, kind, seen_auth, wrapped_auth)
  where p.endpoint_id = u.endpoint_id
    and p.secret is not distinct from u.seen and p.previous_secret is not distinct from u.seen_previous
    and (u.seen is null) = (u.wrapped is null) and (u.seen_previous is null) = (u.wrapped_previous is null)
    and (wrap_secrets.seen_auth is null
      or p.auth #>> '{}' is not distinct from u.seen_auth and (u.seen_auth is null) = (u.wrapped_auth is null));
  get diagnostics done = row_count;
  perform set_config('webhooks.bell', bell, true);
  return done;
end $$;
comment on function webhooks.wrap_secrets is 'Puts encrypted secrets and auths in the place of those that were seen, unless they have changed meanwhile; rings no bell, since no request changes. Returns how many endpoints';

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

revoke all on function webhooks.wrap_secrets from public;

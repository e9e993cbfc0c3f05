-- What an endpoint may ask for beyond the platform's ways: retries, headers, statuses, profiles, the rotation of secrets.
-- Each column is there since the first migration and had no effect; what SQL cannot judge is judged when it is used.
-- min_daemon: 0.1.0

alter table webhooks.endpoints
  -- Ed25519: base64 of a private key of 32 bytes, or of it and its public key.
  add constraint "a whsk_ secret is base64 of 32 or 64 bytes" check (
    secret not like 'whsk\_%' or case when substr(secret, 6) ~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
      then octet_length(decode(substr(secret, 6), 'base64')) in (32, 64) else false end),
  add constraint "previous_secret is as good as a secret" check (
    case when previous_secret like 'whsec\_%' then
           case when substr(previous_secret, 7) ~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
           then octet_length(decode(substr(previous_secret, 7), 'base64')) between 24 and 64 else false end
         when previous_secret like 'whsk\_%' then
           case when substr(previous_secret, 6) ~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$'
           then octet_length(decode(substr(previous_secret, 6), 'base64')) in (32, 64) else false end
         else previous_secret <> '' end),
  add constraint "previous_secret has an end, previous_secret_until" check (
    (previous_secret is null) = (previous_secret_until is null) and isfinite(previous_secret_until)),

  -- Narrower than what the setting takes: whatever passes here can be used.
  add constraint "retry_schedule is waits such as 5s,5m,2h,1d" check (
    retry_schedule ~ ('^ *([0-9]{1,6}(\.[0-9]{1,3})?(ms|s)|[0-9]{1,4}(\.[0-9]{1,3})?m|[1-6]?[0-9]{1,2}(\.[0-9]{1,3})?h|([12]?[0-9](\.[0-9]{1,3})?|30)d)'
      || '( *, *([0-9]{1,6}(\.[0-9]{1,3})?(ms|s)|[0-9]{1,4}(\.[0-9]{1,3})?m|[1-6]?[0-9]{1,2}(\.[0-9]{1,3})?h|([12]?[0-9](\.[0-9]{1,3})?|30)d)){0,99} *$')
    and retry_schedule !~ '(^|[ ,])0+(\.0+)?[mshd]'),
  add constraint "success_statuses is 2xx and ranges such as 200,202-204" check (
    success_statuses ~ '^ *2[0-9]{2}(-2[0-9]{2})?( *, *2[0-9]{2}(-2[0-9]{2})?)* *$' and length(success_statuses) <= 200),

  -- RFC 9110: names are tokens, values printable ASCII. _ counts as -, since CGI makes one name of both.
  add constraint "headers is at most 20 texts, 4000 characters in all" check (
    jsonb_typeof(headers) <> 'object'
    or jsonb_array_length(jsonb_path_query_array(headers, '$.keyvalue()')) <= 20 and length(headers::text) <= 4000
    and jsonb_path_exists(headers, 'strict $.* ? (@.type() != "string")', '{}', true) is not true),
  add constraint "headers has names that are tokens, each once" check (
    jsonb_typeof(headers) <> 'object'
    or not jsonb_path_exists(headers, '$.keyvalue() ? (!(@.key like_regex "^[-A-Za-z0-9!#$%&''*+.^_`|~]{1,100}$"))')
    and jsonb_array_length(jsonb_path_query_array(headers, '$.keyvalue()'))
      = jsonb_array_length(jsonb_path_query_array(lower(headers::text)::jsonb, '$.keyvalue()'))),
  add constraint "headers has values of printable ASCII without blanks around" check (
    jsonb_path_exists(headers, 'strict $.* ? (@.type() == "string" && !(@ like_regex "^[!-~]([ -~]*[!-~])?$"))', '{}', true) is not true),
  add constraint "headers has no name that frames, signs or forwards a request" check (
    jsonb_typeof(headers) <> 'object'
    or not jsonb_path_exists(headers, '$.keyvalue() ? (@.key like_regex
      "^((webhook|x[-_]webhook|content|proxy|x[-_]forwarded|x[-_]aws[-_]ec2[-_]metadata)[-_].*|host|transfer[-_]encoding|connection|te|trailer|upgrade|expect|keep[-_]alive|http2[-_]settings|user[-_]agent|accept|accept[-_]encoding|cookie|forwarded|via|x[-_]real[-_]ip|metadata|metadata[-_]flavor)$"
      flag "i")')),

  add constraint "profile is a known one" check (
    profile in ('standard', 'plain', 'simvoly', 'github', 'shopify', 'woocommerce', 'stripe', 'svix', 'custom')),
  add constraint "profile_spec is there for the profile custom" check ((profile = 'custom') = (profile_spec is not null)),
  add constraint "profile_spec is an object of known names, at most 4000 long" check (
    jsonb_typeof(profile_spec) = 'object' and length(profile_spec::text) <= 4000
    and case when jsonb_typeof(profile_spec) = 'object' then
      profile_spec - '{header,algorithm,encoding,opening,prefix,joint,signed,key,body,headers}'::text[] = '{}' end),
  add constraint "profile_spec says how to sign, in words that are known" check (
    coalesce(profile_spec ->> 'algorithm', 'sha256') in ('sha1', 'sha256', 'sha512')
    and coalesce(profile_spec ->> 'encoding', 'hex') in ('hex', 'base64')
    and coalesce(profile_spec ->> 'key', 'text') in ('text', 'standard')
    and coalesce(profile_spec ->> 'body', 'payload') in ('payload', 'envelope')
    and coalesce(profile_spec ->> 'signed', '{body}') like '%{body}%'
    and coalesce(jsonb_typeof(profile_spec -> 'headers'), 'object') = 'object'
    and jsonb_path_exists(profile_spec, 'strict $.keyvalue() ? (@.key != "headers" && @.value.type() != "string")', '{}', true) is not true
    and jsonb_path_exists(profile_spec, 'strict $.headers.* ? (@.type() != "string")', '{}', true) is not true),
  add constraint "profile_spec has no header that frames or forwards a request" check (
    profile_spec is null or jsonb_typeof(profile_spec) <> 'object'
    or not jsonb_path_exists(
      jsonb_build_array(profile_spec -> 'header') || jsonb_path_query_array(profile_spec, '$.headers.keyvalue().key'),
      '$[*] ? (@.type() == "string" && (!(@ like_regex "^[-A-Za-z0-9!#$%&''*+.^_`|~]{1,100}$") || @ like_regex
      "^((webhook|content|proxy|x[-_]forwarded|x[-_]aws[-_]ec2[-_]metadata)[-_].*|x[-_]webhook[-_](topic|source|attempt|triggered[-_]at)|host|transfer[-_]encoding|connection|te|trailer|upgrade|expect|keep[-_]alive|http2[-_]settings|user[-_]agent|accept|accept[-_]encoding|cookie|forwarded|via|x[-_]real[-_]ip|metadata|metadata[-_]flavor)$"
      flag "i"))'));

comment on column webhooks.endpoints.secret is 'whsec_ + base64: Standard Webhooks; whsk_ + base64: an Ed25519 private key; any other text: its bytes are the key; null: requests are not signed';
comment on column webhooks.endpoints.timeout_s is 'Seconds that an answer may take; null: as the setting delivery.timeout_s says';
comment on column webhooks.endpoints.retry_schedule is 'The wait after failure 1, 2, ..., such as 5s,5m,2h,1d; null: as the setting retry.schedule says. retry.age_max_s bounds it still';
comment on column webhooks.endpoints.headers is 'Further header lines of every request, {"name": "value"}; none of them decides where a request ends or who it is from';
comment on column webhooks.endpoints.success_statuses is 'The 2xx that count as success, such as 200,202-204; another 2xx is refused and tried again; null: any 2xx';
comment on column webhooks.endpoints.profile is 'Whose requests ours look like, beside the standard headers; standard: as the setting delivery.profile says; plain: nobody''s; custom: as profile_spec says';
comment on column webhooks.endpoints.profile_spec is 'For the profile custom: an object with header, algorithm, encoding, opening, prefix, joint, signed, key, body, headers';
comment on column webhooks.endpoints.previous_secret is 'Signs beside secret until previous_secret_until; set by rotate_secret';
comment on column webhooks.endpoints.previous_secret_until is 'From then on previous_secret is of no use';

create function webhooks.rotate_secret(endpoint_id bigint, overlap interval default '24 hours', secret text default null) returns text
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  old text;
  fresh text := rotate_secret.secret;
  broken text;
begin
  if overlap is null or overlap < interval '0' or overlap > interval '30 days' then
    raise exception 'overlap is 0 to 30 days, not %', overlap using errcode = 'invalid_parameter_value';
  end if;
  select e.secret into old from webhooks.endpoints e where e.endpoint_id = rotate_secret.endpoint_id for update;
  if not found then
    raise exception 'there is no endpoint %', endpoint_id using errcode = 'no_data_found';
  end if;
  if fresh is null then  -- of the kind that the endpoint has; any 32 bytes are an Ed25519 private key
    fresh := webhooks.new_secret();
    if old like 'whsk\_%' then
      fresh := 'whsk_' || substr(fresh, 7);
    end if;
  elsif fresh = old then
    raise exception 'that is the secret of endpoint % already', endpoint_id using errcode = 'invalid_parameter_value';
  end if;
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
  insert into webhooks.operations (what, detail)
  values ('rotate_secret', jsonb_build_object('endpoint_id', rotate_secret.endpoint_id, 'overlap', overlap::text));
  return fresh;
end $$;
comment on function webhooks.rotate_secret is 'Gives an endpoint a new secret and returns it; the old one signs beside it for as long as overlap says';

revoke all on function webhooks.rotate_secret from public;

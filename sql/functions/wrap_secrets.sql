-- Replaces secrets and auth of endpoints by their encrypted form, for the daemon. A null seen_auth leaves auth as it
-- is.
create or replace function webhooks.wrap_secrets(
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
comment on function webhooks.wrap_secrets is
  'Puts encrypted secrets and auths in the place of those that were seen, unless they have changed meanwhile; rings '
  'no bell, since no request changes. Returns how many endpoints';

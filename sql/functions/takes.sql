-- True if an endpoint with these types gets events of a type. Types that begin with webhook_ are part of webhook_*
-- alone.
create or replace function webhooks.takes(event_types text[], type text) returns boolean
language sql immutable parallel safe as $$
  select exists (
    select from unnest(event_types) as wanted
    where wanted = type
      or (right(wanted, 1) = '*' and starts_with(type, left(wanted, -1))
        and (starts_with(wanted, 'webhook_') or not starts_with(type, 'webhook_'))))
$$;

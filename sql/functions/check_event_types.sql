-- Trigger of endpoints: refuses event types that can never match, with the nearest known type, and an empty list.
-- needs: nearest_name
create or replace function webhooks.check_event_types() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  wrong text;
begin
  if not exists (select from unnest(new.event_types) t where t is not null) then
    raise exception 'event_types is empty: the endpoint would get no event; * stands for every type'
      using errcode = 'check_violation', constraint = 'event_types can match an event';
  end if;
  select t into wrong from unnest(new.event_types) t
  where t !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' and t !~ '^([a-zA-Z0-9_]+\.)*[a-zA-Z0-9_]*\*$' limit 1;
  if found then
    raise exception 'event_types: % can never match%', quote_literal(left(wrong, 130)),
      coalesce('; the nearest known type is ' || webhooks.nearest_name('type', left(wrong, 130)), '')
      using errcode = 'check_violation', constraint = 'event_types can match an event';
  end if;
  return new;
end $$;

-- Trigger of endpoints: a new endpoint gets only later events; an endpoint that is switched off or on gets a time and a
-- reason.
-- needs: newest_event_id
create or replace function webhooks.endpoint_changes() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  if tg_op = 'INSERT' then
    new.from_event_id := webhooks.newest_event_id();
  end if;
  if new.enabled then
    new.disabled_at := null;
    new.disabled_reason := null;
  elsif tg_op = 'INSERT' or old.enabled then
    new.disabled_at := now();
    new.disabled_reason := coalesce(new.disabled_reason, 'owner');
  end if;
  return new;
end $$;

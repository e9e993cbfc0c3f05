-- Trigger of endpoints: a new endpoint gets only later events; an endpoint that is switched off or on gets a time and a
-- reason; a change of substance is a new revision, and the daemon judges the endpoint again if its requests would be
-- others.
-- needs: endpoint_difference, newest_event_id
create or replace function webhooks.endpoint_changes() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  changed jsonb;
begin
  if tg_op = 'INSERT' then
    new.from_event_id := webhooks.newest_event_id();
    new.revision := 1 + coalesce(  -- an id that was deleted may be used again
      (select max(r.revision) from webhooks.endpoint_revisions r where r.endpoint_id = new.endpoint_id), 0);
  end if;
  if new.enabled then
    new.disabled_at := null;
    new.disabled_reason := null;
  elsif tg_op = 'INSERT' or old.enabled then
    new.disabled_at := now();
    new.disabled_reason := coalesce(new.disabled_reason, 'owner');
  end if;
  if tg_op = 'UPDATE' then
    changed := webhooks.endpoint_difference(to_jsonb(old), to_jsonb(new));
    new.revision := old.revision + (changed <> '{}')::int;
    if changed ?| array['url', 'secret', 'previous_secret', 'auth', 'headers', 'profile', 'profile_spec', 'filter',
      'retry_schedule', 'success_statuses', 'timeout_s', 'rate_per_s'] then
      new.ready := null;
      new.why := null;
      new.judged_at := null;
    end if;
  end if;
  return new;
end $$;

-- The payload of an event, for a page where it is asked for: to the site that webhooks.site_id names, and to roles that
-- may read payloads. Null for others, for an unknown event, and once its day has left the log.
create or replace function webhooks.event_payload(event_id bigint) returns json
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  caller constant name :=
    --include caller
  ;
begin
  return (
    select e.payload from webhooks.events e
    where e.event_id = event_payload.event_id
      and (has_column_privilege(caller, 'webhooks.events', 'payload', 'select')
        or e.site_id = current_setting('webhooks.site_id', true)));
end $$;
comment on function webhooks.event_payload is
  'The payload of an event: for the site that webhooks.site_id names, and for roles that may read payloads';

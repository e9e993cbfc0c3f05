-- Sends one delivery once more, dead or delivered: the button beside it on a page for owners.
-- needs: is_erased, replay, sees_site
create or replace function webhooks.send_again(event_id bigint, endpoint_id bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  found_deliveries bigint;
begin
  perform from webhooks.events e
  join webhooks.endpoints p on p.site_id = e.site_id
  where e.event_id = send_again.event_id and p.endpoint_id = send_again.endpoint_id and webhooks.sees_site(e.site_id)
    and not webhooks.is_erased(e.payload);
  if not found then
    return false;
  end if;
  select r.deliveries into found_deliveries from webhooks.replay(
    event_ids => array[send_again.event_id], endpoint_id => send_again.endpoint_id, states => '{dead,delivered}',
    dry_run => false) r;
  return found_deliveries > 0;
end $$;
comment on function webhooks.send_again is
  'Sends a delivery that is dead or delivered once more. False: the caller may not see it, or it is pending, or its '
  'payload is erased';

-- Trigger of UPDATE on endpoints: an endpoint that moves to another site counts there as a new one does.
create or replace function webhooks.check_moved_endpoint() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  most int;
begin
  select s.endpoints_max into most from webhooks.sites s where s.site_id = new.site_id for no key update;
  if (select count(*) from webhooks.endpoints p where p.site_id = new.site_id) > most then
    raise exception 'site % may have % endpoints: delete one, or raise sites.endpoints_max', new.site_id, most
      using errcode = 'program_limit_exceeded';
  end if;
  return null;
end $$;

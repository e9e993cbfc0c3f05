-- Trigger of INSERT on endpoints: refuses more endpoints of a site than sites.endpoints_max, since each event costs as
-- many deliveries.
create or replace function webhooks.check_endpoints_max() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  found record;
begin
  -- Locked, so that two who add at once see each other; producers and the daemon never wait for this lock.
  for found in
    select s.site_id, s.endpoints_max from webhooks.sites s
    where s.site_id in (select c.site_id from changed c) and s.endpoints_max is not null
    order by s.site_id
    for no key update
  loop
    if (select count(*) from webhooks.endpoints p where p.site_id = found.site_id) > found.endpoints_max then
      raise exception 'site % may have % endpoints: delete one, or raise sites.endpoints_max', found.site_id, found.endpoints_max
        using errcode = 'program_limit_exceeded';
    end if;
  end loop;
  return null;
end $$;

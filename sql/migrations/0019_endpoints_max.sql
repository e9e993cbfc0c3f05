-- How many endpoints a site may have: each event costs as many deliveries. And the index that reads them slice by slice.
-- min_daemon: 0.1.0

alter table webhooks.sites
  add column endpoints_max int constraint "endpoints_max is 0 or more" check (endpoints_max >= 0);
alter table webhooks.sites alter column endpoints_max set default 100;
comment on column webhooks.sites.endpoints_max is 'How many endpoints the site may have; null: as many as it likes. Sites from before this column have null';

create function webhooks.check_endpoints_max() returns trigger
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
create trigger endpoints_max_added after insert on webhooks.endpoints
  referencing new table as changed for each statement execute function webhooks.check_endpoints_max();

create function webhooks.check_moved_endpoint() returns trigger
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
create trigger endpoints_max_moved after update of site_id on webhooks.endpoints
  for each row when (old.site_id is distinct from new.site_id) execute function webhooks.check_moved_endpoint();

drop index webhooks.endpoints_of_site;
create index endpoints_of_site on webhooks.endpoints (site_id, endpoint_id);

revoke all on function webhooks.check_endpoints_max, webhooks.check_moved_endpoint from public;

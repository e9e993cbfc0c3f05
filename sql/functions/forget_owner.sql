-- A part of forget: erases an owner without further sites, and mentions of the site in emails to others.
create or replace function webhooks.forget_owner(owner_email text, site_id text) returns bigint
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  whose constant text := lower(owner_email);
  part text;
  total bigint := 0;
  n bigint;
begin
  if not exists (select from webhooks.sites s where lower(s.owner_email) = whose) then
    delete from webhooks.emails e where e.owner_email = whose;
    get diagnostics total = row_count;
    delete from webhooks.owners o where o.owner_email = whose;
    get diagnostics n = row_count;
    total := total + n;
    update webhooks.operations o set detail = '{}' where lower(o.detail ->> 'owner_email') = whose;
  end if;
  -- Emails to others, or to an owner of further sites: their mentions of this one.
  foreach part in array array['sections', 'faults'] loop
    delete from webhooks.emails e
    where e.digest @> jsonb_build_object(part, jsonb_build_array(jsonb_build_object('site_id', forget_owner.site_id)))
      and not exists (select from jsonb_array_elements(e.digest -> part) x where x ->> 'site_id' is distinct from forget_owner.site_id);
    get diagnostics n = row_count;
    total := total + n;
    update webhooks.emails e
    set subject = null, digest = jsonb_set(e.digest, array[part],
      (select jsonb_agg(x) from jsonb_array_elements(e.digest -> part) x where x ->> 'site_id' is distinct from forget_owner.site_id))
    where e.digest @> jsonb_build_object(part, jsonb_build_array(jsonb_build_object('site_id', forget_owner.site_id)));
  end loop;
  return total;
end $$;

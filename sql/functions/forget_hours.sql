-- A part of forget, its last walk: erases the rows of a site in endpoint_hours, by pages of whole hours. An hour that is
-- being counted just now may still have attempts of the site: the page waits for the next call. At its end, events that
-- came in after the site had gone are no longer counted by its name.
create or replace function webhooks.forget_hours(site_id text, looks int) returns bigint
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
#variable_conflict use_column
declare
  f webhooks.forgotten;
  last timestamptz;
  n bigint;
begin
  perform from webhooks.upkeep u where u.what = 'activity' for update skip locked;
  if not found then
    return null;
  end if;
  select * into f from webhooks.forgotten g where g.site_id = forget_hours.site_id;
  select max(t.hour) into last from (
    select h.hour from webhooks.endpoint_hours h where h.hour > f.after_hour order by h.hour limit looks) t;
  delete from webhooks.endpoint_hours h where h.hour > f.after_hour and h.hour <= last and h.site_id = f.site_id;
  get diagnostics n = row_count;
  if last is not null then
    update webhooks.forgotten g set after_hour = last, erased = g.erased + n where g.site_id = f.site_id;
  else
    delete from webhooks.forgotten g where g.site_id = f.site_id;
    delete from webhooks.unclaimed_events c where c.what = 'site' and c.name = f.site_id;
    insert into webhooks.operations (what, detail)
    values ('forgotten', jsonb_build_object(
      'site_sha256', encode(sha256(convert_to(f.site_id, 'UTF8')), 'hex'), 'rows', f.erased));
  end if;
  return n;
end $$;
comment on function webhooks.forget_hours is
  'Erases a site from the next hours of endpoint_hours; null: there is nothing to do now. A part of forget';

-- A part of forget: erases the rows that the next events of the log have of a site, in two walks, then those of the next
-- day of the archive, and last the counts by hour. Called by the daemon as well.
-- needs: forget_archived_day, forget_hours, newest_event_id
create or replace function webhooks.forget_page(site_id text, looks int) returns bigint
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  f webhooks.forgotten;
  page record;
  n bigint;
  total bigint := 0;
begin
  select * into f from webhooks.forgotten g where g.site_id = forget_page.site_id for update skip locked;
  if not found then
    return null;
  elsif f.walk = 3 then
    page := webhooks.forget_archived_day(f.site_id, f.after_event_id::int);
    if page.day is not null then
      update webhooks.forgotten g set erased = g.erased + page.gone, after_event_id = page.day
      where g.site_id = f.site_id;
      return page.gone;
    end if;
    update webhooks.forgotten g set walk = 4 where g.site_id = f.site_id;
    return 0;
  elsif f.walk = 4 then
    return webhooks.forget_hours(f.site_id, looks);
  elsif f.walk = 2 and f.after_event_id = 0 then
    -- Requests have ended by then, and so have transactions that may have inserted for it.
    if f.asked_at > now() - interval '2 minutes' or pg_snapshot_xmin(pg_current_snapshot()) < f.asked_xid then
      return null;
    end if;
    f.to_event_id := webhooks.newest_event_id();
  end if;
  select count(*) as seen, max(t.event_id) as last into page from (
    select e.event_id from webhooks.events e
    where e.event_id > f.after_event_id and e.event_id <= f.to_event_id order by e.event_id limit looks) t;
  if page.seen < looks then
    page.last := f.to_event_id;
  end if;
  delete from webhooks.backlog b using (  -- what the daemon has in its hand is left to the second walk
    select w.event_id, w.endpoint_id from webhooks.backlog w
    where w.event_id > f.after_event_id and w.event_id <= page.last and w.site_id = f.site_id for update skip locked) w
  where b.event_id = w.event_id and b.endpoint_id = w.endpoint_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.dead d where d.event_id > f.after_event_id and d.event_id <= page.last and d.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.attempts a where a.event_id > f.after_event_id and a.event_id <= page.last and a.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  delete from webhooks.events e where e.event_id > f.after_event_id and e.event_id <= page.last and e.site_id = f.site_id;
  get diagnostics n = row_count;
  total := total + n;
  if page.seen = looks then
    update webhooks.forgotten g set after_event_id = page.last, to_event_id = f.to_event_id, erased = g.erased + total
    where g.site_id = f.site_id;
  else
    update webhooks.forgotten g set walk = f.walk + 1, after_event_id = 0, erased = g.erased + total
    where g.site_id = f.site_id;
  end if;
  return total;
end $$;
comment on function webhooks.forget_page is
  'Erases what the next events of the log have of a site that is being forgotten; null: there is nothing to do now. '
  'The daemon''s own';

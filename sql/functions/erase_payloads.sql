-- The daemon's step of retention.payload_days: erases payloads of the next events. No payload may go while its event is
-- about to be sent again: a running replay is waited for, a new one waits for the page (milliseconds), and an event
-- that has a row in backlog is left alone.
-- needs: is_erased
create or replace function webhooks.erase_payloads(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off set lock_timeout = '1s' as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz;
  settled bigint := coalesce((select min(s.floor) from webhooks.shards s), 0);
  ids bigint[];
  page record;
begin
  if (days > 0 and days <> 'NaN') is not true then
    raise exception 'days is a number above 0, not %', days using errcode = 'invalid_parameter_value';
  end if;
  bound := now() - make_interval(secs => days * 86400);
  insert into webhooks.upkeep (what) values ('payloads') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'payloads' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  end if;
  lock table webhooks.replays in exclusive mode;
  select count(*) as seen, max(k.event_id) as last, bool_or(k.created_at < bound) as has_old,
    array_agg(k.event_id) filter (where k.ripe) as ripe, min(k.event_id) filter (where not (k.ripe or k.gone)) as left_over
  into page
  from (
    select e.event_id, e.created_at, g.gone,
      e.created_at < bound and e.event_id <= settled and not g.gone
        and not exists (select from webhooks.backlog b where b.event_id = e.event_id) as ripe
    from (
      select v.event_id, v.created_at, v.payload from webhooks.events v
      where v.event_id > u.after_event_id order by v.event_id limit looks) e
    cross join lateral (select webhooks.is_erased(e.payload) as gone) g) k;
  ids := coalesce(page.ripe, '{}');
  update webhooks.events v set payload = '{"pghookd":"erased"}'
  where v.event_id = any (ids) and v.event_id > u.after_event_id and v.event_id <= page.last;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then page.last else coalesce(u.again_from - 1, page.last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    ended_at = case when ended then now() end
  where k.what = 'payloads';
  return next;
end $$;
comment on function webhooks.erase_payloads is
  'Erases the payloads of the next events that are older and have no unfinished delivery; the daemon''s own. Reads so '
  'many events, and not again for a while once it has come to the end';

-- The daemon's step of retention.response_days: erases the answers and the evidence of the next attempts.
create or replace function webhooks.erase_responses(days float8, looks int, rest interval default '6 hours') returns table (erased bigint, ended boolean)
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  u webhooks.upkeep;
  bound timestamptz;
  last bigint;
  page record;
begin
  if (days > 0 and days <> 'NaN') is not true then
    raise exception 'days is a number above 0, not %', days using errcode = 'invalid_parameter_value';
  end if;
  bound := now() - make_interval(secs => days * 86400);
  insert into webhooks.upkeep (what) values ('responses') on conflict do nothing;
  select * into u from webhooks.upkeep where what = 'responses' for update;
  if u.ended_at > now() - rest then
    return query select 0::bigint, true;
    return;
  elsif u.ended_at is not null or u.began_at is null then  -- a walk begins
    if exists (select from webhooks.replays r where coalesce(r.ended_at, now()) >= u.began_at) then
      u.after_event_id := 0;  -- old events have new attempts
    end if;
    u.began_at := now();
    u.again_from := (select min(b.event_id) from webhooks.backlog b);  -- these will have more
    u.after_event_id := least(u.after_event_id, u.again_from - 1);
  end if;
  select max(t.event_id) into last from (
    select a.event_id from webhooks.attempts a where a.event_id > u.after_event_id order by a.event_id limit looks) t;
  select count(*) as seen, coalesce(bool_or(a.attempted_at < bound), false) as has_old,
    min(a.event_id) filter (where num_nonnulls(a.response, a.evidence) > 0 and a.attempted_at >= bound) as left_over
  into page
  from webhooks.attempts a where a.event_id > u.after_event_id and a.event_id <= last;
  update webhooks.attempts a set response = null, evidence = null
  where a.event_id > u.after_event_id and a.event_id <= last and a.attempted_at < bound
    and num_nonnulls(a.response, a.evidence) > 0;
  get diagnostics erased = row_count;
  ended := page.seen < looks or not page.has_old;
  u.again_from := least(u.again_from, page.left_over);
  update webhooks.upkeep k
  set after_event_id = case when not ended then last else coalesce(u.again_from - 1, last, u.after_event_id) end,
    again_from = case when not ended then u.again_from end,
    began_at = u.began_at, ended_at = case when ended then now() end
  where k.what = 'responses';
  return next;
end $$;
comment on function webhooks.erase_responses is
  'Erases the answers and the evidence kept with the next attempts that are older; the daemon''s own';

-- Counts the attempts of a time, of all endpoints or of one, by endpoint and hour. A retry lies in the partition of its
-- event's day, so all days are searched. Lives on attempts_by_time, which leaves out pages of other times:
-- only bitmap scans use it, and an index in the order of the groups would look cheaper to the planner.
create or replace function webhooks.count_attempts(low timestamptz, high timestamptz, endpoint_id bigint default null)
returns setof webhooks.endpoint_hours
language plpgsql stable set search_path = pg_catalog, webhooks, pg_temp
set plan_cache_mode = force_custom_plan set enable_seqscan = off set enable_indexscan = off set jit = off as $$
#variable_conflict use_column
begin
  return query
    select s.hour, s.endpoint_id, sum(s.n)::int, sum(s.delivered)::int, array_agg(s.slot), array_agg(s.n), s.site_id
    from (
      select date_trunc('hour', a.attempted_at, 'UTC') as hour, a.site_id,
        a.endpoint_id + 0 as endpoint_id,  -- + 0: not in the order of an index
        floor(10 * log(least(greatest(a.duration_ms, 1), 99999)))::smallint as slot,
        count(*)::int as n, count(*) filter (where a.outcome = 'delivered') as delivered
      from webhooks.attempts a
      where a.attempted_at >= low and a.attempted_at < high
        and (count_attempts.endpoint_id is null or a.endpoint_id = count_attempts.endpoint_id)
      group by 3, 2, 1, 4) s  -- the endpoint first: a sort is fast if its first key differs
    group by s.endpoint_id, s.site_id, s.hour;
end $$;
comment on function webhooks.count_attempts is
  'Counts the attempts of a time by endpoint and hour. A part of roll_up_hour and endpoint_activity';

-- Counts and durations of an endpoint's attempts by hour or by day (UTC), for charts: the buckets of `since` and `until`
-- and those between, each as a whole. Hours that the daemon has counted come from endpoint_hours, the others from the
-- attempts. A percentile is interpolated within its slot of durations: it is at most 26 % off, or 1.3 ms.
-- needs: count_attempts, sees_site
create or replace function webhooks.endpoint_activity(
  endpoint_id bigint, since timestamptz, until timestamptz, bucket text default 'hour')
returns setof webhooks.activity
language plpgsql stable security definer set search_path = pg_catalog, webhooks, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
declare
  unit constant text := bucket;
  which constant bigint := endpoint_id;
  site constant text := (select p.site_id from webhooks.endpoints p where p.endpoint_id = which);
  uncounted constant timestamptz := (select u.next_hour from webhooks.upkeep u where u.what = 'activity');
  low timestamptz;
  high timestamptz;
begin
  if (unit in ('hour', 'day')) is not true then
    raise exception 'bucket is hour or day, not %', coalesce(unit, 'null')
      using errcode = 'invalid_parameter_value';
  elsif webhooks.sees_site(site) is not true then
    return;
  end if;
  low := date_trunc(unit, since, 'UTC');
  high := coalesce(date_trunc(unit, until - interval '1 microsecond', 'UTC') + ('1 ' || unit)::interval, 'infinity');
  return query
    with hours as materialized (
      select date_trunc(unit, h.hour, 'UTC') as bucket, h.delivered, h.slots, h.counts
      from generate_series(
        greatest(low, (select coalesce(min(o.hour), uncounted) from webhooks.endpoint_hours o)),
        least(high, uncounted) - interval '1 hour', interval '1 hour') t(hour)
      join webhooks.endpoint_hours h on h.hour = t.hour and h.endpoint_id = which and h.site_id = site
      union all
      select date_trunc(unit, c.hour, 'UTC'), c.delivered, c.slots, c.counts
      from webhooks.count_attempts(greatest(low, uncounted), high, which) c
      where c.site_id = site
    ), parts as (
      select h.bucket, unnest(h.slots) as slot, unnest(h.counts) as n,
        unnest(array[h.delivered]) as delivered  -- it is that of all slots of the hour: beside the first of them
      from hours h
    ), slots as (
      select p.bucket, p.slot, sum(p.n)::float8 as n, sum(p.delivered) as delivered from parts p group by 1, 2
    ), steps as (  -- the share of attempts that took less than a slot's beginning, and than its end
      select s.bucket, s.slot, s.n, s.delivered,
        (sum(s.n) over upto - s.n) / sum(s.n) over whole as low_share,
        sum(s.n) over upto / sum(s.n) over whole as high_share
      from slots s
      window whole as (partition by s.bucket), upto as (partition by s.bucket order by s.slot)
    ), ends as (
      select s.*, case when s.slot > 0 then 10 ^ (s.slot / 10::float8) else 0 end as low_ms,
        10 ^ ((s.slot + 1) / 10::float8) as high_ms
      from steps s
    )
    select s.bucket, sum(s.n)::bigint, sum(s.delivered)::bigint, sum(s.n)::bigint - sum(s.delivered)::bigint,
      (min(s.low_ms + (s.high_ms - s.low_ms) * (0.5 - s.low_share) / (s.high_share - s.low_share))
        filter (where s.low_share < 0.5 and s.high_share >= 0.5))::real,
      (min(s.low_ms + (s.high_ms - s.low_ms) * (0.95 - s.low_share) / (s.high_share - s.low_share))
        filter (where s.low_share < 0.95 and s.high_share >= 0.95))::real
    from ends s
    group by s.bucket
    order by s.bucket;
end $$;
comment on function webhooks.endpoint_activity is
  'Attempts of an endpoint by hour or by day (UTC): how many there were, how many were delivered and how many failed, '
  'and the median and the 95th percentile of their durations. One row for each bucket with attempts';

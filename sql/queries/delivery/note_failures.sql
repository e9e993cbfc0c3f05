-- Endpoints that failed in a batch of attempts: starts or updates an incident. $1 bigint[]: endpoint ids; $2 and $3
-- timestamptz[]: first and last failed attempt (null: the delivery was given up without an attempt, and the time of its
-- row counts); $4, $5 timestamptz[]: last 2xx, and first 2xx after the last failure (null: no 2xx); $6 bigint[]: 2xx
-- answers; $7 text[], $8 smallint[], $9 text[]: outcome, status and error of the last failure (unsent, null and the
-- reason if it was not tried); $10 bigint[], $11 smallint[]: its event and attempt. A deleted endpoint gets no
-- incident. Returns the latest known failure; null if the endpoint or its incident is locked: nothing is noted of it,
-- and nothing waits. Lives on the primary keys.
with u as materialized (
  select * from unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::text[],
    $8::smallint[], $9::text[], $10::bigint[], $11::smallint[])
    as u(endpoint_id, first_at, last_at, success_at, recovering_at, successes, outcome, status, error, event_id, attempt)
), free as materialized (
  select p.endpoint_id from u join webhooks.endpoints p using (endpoint_id) for key share of p skip locked
), known as materialized (
  select i.endpoint_id from u join webhooks.incidents i using (endpoint_id)
), free_incidents as materialized (
  select i.endpoint_id from u join webhooks.incidents i using (endpoint_id) for update of i skip locked
), noted as (
  insert into webhooks.incidents as i (endpoint_id, state, first_failure_at, last_failure_at, last_success_at, recovering_at,
    window_at, successes, last_outcome, last_status, last_error, last_event_id, last_attempt, next_look_at)
  select u.endpoint_id, 'shaky', t.first_at, t.last_at, u.success_at, u.recovering_at, t.first_at, u.successes,
    u.outcome, u.status, u.error, u.event_id, u.attempt, t.first_at
  from u
  cross join lateral (select case when u.last_at is null then coalesce(
      (select b.since from webhooks.backlog b where b.event_id = u.event_id and b.endpoint_id = u.endpoint_id),
      (select d.since from webhooks.dead d where d.event_id = u.event_id and d.endpoint_id = u.endpoint_id), now()) end as at) unsent
  cross join lateral (select coalesce(u.first_at, unsent.at, now()) as first_at, coalesce(u.last_at, unsent.at, now()) as last_at) t
  where u.endpoint_id in (select endpoint_id from free)
    and (u.endpoint_id not in (select endpoint_id from known) or u.endpoint_id in (select endpoint_id from free_incidents))
  on conflict (endpoint_id) do update set
    state = case when i.state = 'healthy' then 'shaky' else i.state end,
    first_failure_at = case when i.state = 'healthy' then excluded.first_failure_at else i.first_failure_at end,
    last_failure_at = greatest(i.last_failure_at, excluded.last_failure_at),
    last_success_at = case when i.state = 'healthy' then excluded.last_success_at
                           else greatest(i.last_success_at, excluded.last_success_at) end,
    recovering_at = excluded.recovering_at,
    window_at = coalesce(i.window_at, excluded.window_at),
    successes = case when i.state = 'healthy' then 0 else i.successes end + excluded.successes,
    last_outcome = excluded.last_outcome, last_status = excluded.last_status, last_error = excluded.last_error,
    last_event_id = excluded.last_event_id, last_attempt = excluded.last_attempt,
    next_look_at = case when i.window_at is null or i.recovering_at is not null
                        then least(i.next_look_at, excluded.next_look_at) else i.next_look_at end
  returning i.endpoint_id, i.last_failure_at
)
select endpoint_id, last_failure_at from noted
union all
select p.endpoint_id, null from u join webhooks.endpoints p using (endpoint_id)
where p.endpoint_id not in (select endpoint_id from noted)

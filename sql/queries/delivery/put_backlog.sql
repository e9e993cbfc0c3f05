-- Inserts or changes the rows of deliveries. A disabled endpoint's deliveries are held, whatever their state in the
-- arguments. If the reason is disabled and the endpoint is enabled again, the delivery goes out. A deleted endpoint
-- gets no row. $1.. arrays: event_id, endpoint_id, site_id, state, reason, attempts, wait in seconds until the next
-- attempt (null: no wait), line (null: no line), number of attempts that do not count, cause of the next attempt.
-- A row that was not waiting and is now has just been released. A delivery that was cancelled while in flight gets no
-- row. Returns those whose row is locked: it stays as it is, and nothing waits. Lives on the primary key.
with u as materialized (
  select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::float8[],
    $8::text[], $9::smallint[], $10::text[])
    as u(event_id, endpoint_id, site_id, state, reason, attempts, wait_s, line, attempts_before, cause)
), free as materialized (
  select b.event_id, b.endpoint_id from u join webhooks.backlog b using (event_id, endpoint_id) for update of b skip locked
), held as materialized (
  select b.event_id, b.endpoint_id from u join webhooks.backlog b using (event_id, endpoint_id)
  where (b.event_id, b.endpoint_id) not in (select event_id, endpoint_id from free)
), put as (
  insert into webhooks.backlog as b
    (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at, line, attempts_before, cause)
  select u.event_id, u.endpoint_id, u.site_id,
    case when not p.enabled then 'held' when u.reason = 'disabled' then 'waiting' else u.state end,
    case when not p.enabled then 'disabled' when u.reason = 'disabled' then 'queued' else u.reason end,
    u.attempts,
    case when p.enabled and (u.state = 'waiting' or u.reason = 'disabled')
      then now() + coalesce(u.wait_s, 0) * interval '1 second' end,
    u.line, u.attempts_before, u.cause
  from u
  join webhooks.endpoints p using (endpoint_id)
  where (select d.reason from webhooks.dead d where d.event_id = u.event_id and d.endpoint_id = u.endpoint_id)
    is distinct from 'cancelled'  -- a scalar one: it prunes to a day, an anti-join may read them all
    and (u.event_id, u.endpoint_id) not in (select event_id, endpoint_id from held)
  on conflict (event_id, endpoint_id) do update
  set state = excluded.state, reason = excluded.reason, attempts = greatest(b.attempts, excluded.attempts),
    attempts_before = greatest(b.attempts_before, excluded.attempts_before),
    cause = excluded.cause, next_attempt_at = excluded.next_attempt_at, line = coalesce(excluded.line, b.line),
    since = case when b.state = excluded.state then b.since else now() end,
    released_at = case when b.state <> 'waiting' and excluded.state = 'waiting' then now() else b.released_at end
)
select event_id, endpoint_id from held

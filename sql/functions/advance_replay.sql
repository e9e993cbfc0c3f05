-- The daemon's step of a replay, between two batches of its recorder: puts the next deliveries into backlog, and
-- removes them from dead.
-- needs: replay_page
create or replace function webhooks.advance_replay(replay_id bigint, looks int, most int) returns table (taken int, ended boolean)
language plpgsql volatile
set search_path = pg_catalog, webhooks, pg_temp set plan_cache_mode = force_custom_plan
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  r webhooks.replays;
  page record;
begin
  select * into r from webhooks.replays p
  where p.replay_id = advance_replay.replay_id and p.state = 'running' for update skip locked;
  if not found then  -- paused, cancelled, or somebody is about to
    return;
  end if;
  page := webhooks.replay_page(r, looks, most);
  with queued as (
    insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, attempts_before, cause,
      next_attempt_at, released_at)
    select u.event, u.endpoint, u.site, case when p.enabled then 'waiting' else 'held' end,
      case when p.enabled then 'replay' else 'disabled' end, u.attempt, u.attempt, 'replay',
      case when p.enabled then now() end, now()
    from unnest(page.events, page.endpoints, page.sites, page.attempts) as u(event, endpoint, site, attempt)
    join webhooks.endpoints p on p.endpoint_id = u.endpoint
    on conflict do nothing
    returning event_id, endpoint_id
  ), freed as (
    delete from webhooks.dead d using queued q
    where d.event_id = q.event_id and d.endpoint_id = q.endpoint_id
      and d.event_id >= r.after_event_id and d.event_id <= page.to_event_id
  )
  select count(*) into taken from queued;
  ended := page.ended;
  update webhooks.replays p
  set done = p.done + taken, after_event_id = page.to_event_id, after_endpoint_id = page.to_endpoint_id,
    started_at = coalesce(p.started_at, now()),
    state = case when page.ended then 'done' else p.state end, ended_at = case when page.ended then now() end
  where p.replay_id = advance_replay.replay_id;
  return next;
end $$;
comment on function webhooks.advance_replay is
  'Queues the next deliveries of a replay; the daemon''s own, between two batches of its recorder';

-- The reasons that keep a day from being removed by retention: any of backlog, replay and unread; empty if there are
-- none. Called by the daemon before it removes a day, and by `pghookd storage`. The floors of the shards are ids below
-- which every event is settled or has a row in backlog.
create or replace function webhooks.why_kept(day int) returns text[]
language sql stable security definer set search_path = pg_catalog, webhooks, pg_temp as $$
  select array_remove(array[
    case when exists (
      select from webhooks.backlog b
      where b.event_id >= why_kept.day * 4294967296 and b.event_id < (why_kept.day + 1) * 4294967296)
      then 'backlog' end,
    case when exists (
      select from webhooks.replays r
      where r.state in ('running', 'paused')
        and r.after_event_id < (why_kept.day + 1) * 4294967296 and r.last_event_id >= why_kept.day * 4294967296)
      then 'replay' end,
    case when coalesce((select min(s.floor) from webhooks.shards s), 0) < (why_kept.day + 1) * 4294967296 - 1
      then 'unread' end], null)
$$;
comment on function webhooks.why_kept is
  'The reasons that keep a day from being removed: backlog, replay or unread. Empty if it may go';

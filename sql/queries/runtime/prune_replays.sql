-- Deletes old replays that have ended, of the oldest ones. $1 int: days; $2 int: rows to read. Returns how many.
with gone as (
  delete from webhooks.replays r using (
    select replay_id, created_at, state from webhooks.replays order by replay_id limit $2) oldest
  where r.replay_id = oldest.replay_id and oldest.created_at < now() - make_interval(days => $1)
    and oldest.state in ('done', 'cancelled')
  returning 1)
select count(*)::int from gone

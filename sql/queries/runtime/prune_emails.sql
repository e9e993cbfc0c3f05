-- Deletes old emails that are not queued, of the oldest ones. $1 int: days; $2 int: rows to read. Returns how many.
with gone as (
  delete from webhooks.emails e using (
    select email_id, created_at, state from webhooks.emails order by email_id limit $2) oldest
  where e.email_id = oldest.email_id and oldest.created_at < now() - make_interval(days => $1)
    and oldest.state <> 'queued'
  returning 1)
select count(*)::int from gone

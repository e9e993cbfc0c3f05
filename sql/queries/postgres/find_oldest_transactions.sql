-- The sessions whose transactions have been open for longest: they keep notifications from being removed. The start is
-- null where our role may not see it. $1 int: how many. Reads pg_stat_activity and pg_locks.
select a.pid, coalesce(a.usename, '?') as role, a.application_name as application, a.xact_start as open_since
from pg_stat_activity a
where a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
  and exists (select from pg_locks l where l.pid = a.pid and l.locktype = 'virtualxid' and l.granted)
order by a.xact_start nulls last, a.pid limit $1

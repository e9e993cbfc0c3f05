-- Sessions that hold locks of our class and are not an instance of pghookd. Anybody can set an application name, so the
-- role must be ours too: this session's, a member of webhooks_daemon, or the tables' owner. Producers hold key 0
-- shared, whatever their role. Keys are int and shown as oid. Reads pg_locks.
select case when l.objid::bigint > 2147483647 then l.objid::bigint - 4294967296 else l.objid::bigint end as key,
  l.pid, coalesce(a.usename, '?') as role, coalesce(a.application_name, '') as application
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = 1885825131
  and l.database = (select oid from pg_database where datname = current_database())
  and not (l.objid = 0 and l.mode = 'ShareLock')
  and not coalesce(a.application_name like 'pghookd/%' and (
    a.usename = session_user
    or pg_has_role(a.usesysid, to_regrole('webhooks_daemon'), 'member')
    or pg_has_role(a.usesysid, (select relowner from pg_class where oid = to_regclass('webhooks.events')), 'member')), false)
order by 1, 2

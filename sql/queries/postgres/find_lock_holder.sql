-- The backend that holds an advisory lock of this database. $1 int: class; $2 int: key. Reads pg_locks, which shows
-- both as oid.
select pid from pg_locks
where locktype = 'advisory' and granted and objsubid = 2
  and database = (select oid from pg_database where datname = current_database())
  and classid = $1::int::bigint::oid and objid = ($2::int::bigint & 4294967295)::oid

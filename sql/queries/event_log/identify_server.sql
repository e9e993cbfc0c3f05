-- Which server and database this session is on; every session of an instance must give the same answer.
select pg_is_in_recovery() as in_recovery,
  (select system_identifier from pg_control_system()) as system_identifier,
  (select oid from pg_database where datname = current_database()) as database_oid,
  case when pg_is_in_recovery() then null else left(pg_walfile_name(pg_current_wal_lsn()), 8) end as timeline,
  pg_postmaster_start_time() as started_at,
  pg_backend_pid() as pid,
  current_setting('server_version_num')::int as version_num,
  version() as version

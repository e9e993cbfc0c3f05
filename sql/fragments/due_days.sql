-- A CTE: the days of a page of backlog, and whether the partitions are there in which attempts and the end of their
-- deliveries would be recorded.
days as materialized (
  select d.day, (
    select count(*) = 2 from pg_inherits
    where inhrelid in (to_regclass('webhooks.attempts_' || d.day), to_regclass('webhooks.dead_' || d.day))
      and not inhdetachpending) as there
  from (select distinct day from page) d
)

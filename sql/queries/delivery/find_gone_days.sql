-- Returns those of some days whose partition does not exist: attempts of them cannot be recorded. $1 int[]: days as
-- webhooks.day_of() counts them.
select d as day from unnest($1::int[]) d
where not exists (select from pg_inherits where inhrelid = to_regclass('webhooks.attempts_' || d) and not inhdetachpending)

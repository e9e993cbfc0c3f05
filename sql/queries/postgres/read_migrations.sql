-- The migrations that the schema has.
select version, name, sha256, min_daemon from webhooks.migrations order by version

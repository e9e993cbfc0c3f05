-- The functions, views and triggers that the schema has, as they were applied. A migration may have dropped some since:
-- these are left out, so that they count as missing.
select name, sha256, applied_by from webhooks.functions f
where exists (select from pg_proc where pronamespace = to_regnamespace('webhooks') and proname = f.name)
  or exists (
    select from pg_class where relnamespace = to_regnamespace('webhooks') and relname = f.name and relkind = 'v')
  or exists (
    select from pg_trigger t join pg_class c on c.oid = t.tgrelid
    where c.relnamespace = to_regnamespace('webhooks') and t.tgname = f.name and not t.tgisinternal)

-- The functions and views that the schema has, as they were applied. A migration may have dropped some since: these are
-- left out, so that they count as missing.
select name, sha256, applied_by from webhooks.functions f
where exists (select from pg_proc where pronamespace = to_regnamespace('webhooks') and proname = f.name)
  or exists (
    select from pg_class where relnamespace = to_regnamespace('webhooks') and relname = f.name and relkind = 'v')

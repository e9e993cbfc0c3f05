-- How many functions have a name, each with a signature of its own. $1 text: the name.
select count(*) from pg_proc where pronamespace = to_regnamespace('webhooks') and proname = $1

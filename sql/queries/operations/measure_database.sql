-- The size of the whole database in bytes, today as webhooks.day_of() counts days, and where the server keeps its data:
-- null if this role may not know. Reads the catalogue.
select pg_database_size(current_database()) as bytes, webhooks.day_of() as today,
  case when pg_has_role('pg_read_all_settings', 'member')
    then current_setting('data_directory', true) end as data_directory

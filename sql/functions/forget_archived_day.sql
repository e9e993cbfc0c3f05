-- A part of forget: erases the rows of a site in the next day of the archive. The tables have no index by site.
create or replace function webhooks.forget_archived_day(site_id text, after_day int, out day int, out gone bigint)
language plpgsql set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  part text;
  n bigint;
begin
  gone := 0;
  select min(substring(relname from '\d+$')::int) into day from pg_class
  where relnamespace = 'webhooks_archive'::regnamespace and relkind = 'r' and relname ~ '^(events|attempts|dead)_\d+$'
    and substring(relname from '\d+$')::int > after_day;
  foreach part in array array['dead', 'attempts', 'events'] loop
    if to_regclass(format('webhooks_archive.%s_%s', part, day)) is not null then
      execute format('delete from webhooks_archive.%s_%s where site_id = $1', part, day)
      using forget_archived_day.site_id;
      get diagnostics n = row_count;
      gone := gone + n;
    end if;
  end loop;
end $$;
comment on function webhooks.forget_archived_day is
  'Erases the rows of a site in the next archived day; a part of forget. A null day: no archived day is left';

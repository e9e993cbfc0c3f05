-- A part of erase: erases payloads and answers of a subject in the days of the archive. Their tables have the indexes
-- that they had as partitions.
create or replace function webhooks.erase_archived(site_id text, subject text) returns bigint
language plpgsql set search_path = pg_catalog, webhooks, pg_temp set enable_seqscan = off as $$
declare
  day text;
  ids bigint[];
  total bigint := 0;
begin
  for day in
    select substring(relname from '\d+$') from pg_class
    where relnamespace = 'webhooks_archive'::regnamespace and relkind = 'r' and relname ~ '^events_\d+$' order by 1
  loop
    execute format('with gone as ('
      'update webhooks_archive.events_%s set payload = ''{"pghookd":"erased"}'''
      ' where site_id = $1 and left(subject, 400) = left($2, 400) and subject = $2 and not webhooks.is_erased(payload)'
      ' returning event_id) select array_agg(event_id) from gone', day) into ids using site_id, subject;
    if to_regclass('webhooks_archive.attempts_' || day) is not null then
      execute format('update webhooks_archive.attempts_%s set response = null, evidence = null'
        ' where event_id = any ($1) and num_nonnulls(response, evidence) > 0', day) using ids;
    end if;
    total := total + coalesce(cardinality(ids), 0);
  end loop;
  return total;
end $$;
comment on function webhooks.erase_archived is
  'Erases payloads and answers of a subject in archived days; a part of erase';

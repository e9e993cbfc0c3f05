-- A part of erase: erases the answers that emails about a site's endpoints quote. An email does not record to which
-- event an answer was, so all of them go.
create or replace function webhooks.erase_excerpts(site_id text) returns void
language sql set search_path = pg_catalog, webhooks, pg_temp as $$
  update webhooks.emails e
  set digest = jsonb_set(e.digest, '{sections}', (
    select jsonb_agg(
      case when x ->> 'site_id' = erase_excerpts.site_id then x || '{"response": ""}' else x end order by n)
    from jsonb_array_elements(e.digest -> 'sections') with ordinality s(x, n)))
  where exists (
    select from jsonb_array_elements(e.digest -> 'sections') x
    where x ->> 'site_id' = erase_excerpts.site_id and x ->> 'response' <> '')
$$;
comment on function webhooks.erase_excerpts is
  'Erases the answers that emails about a site''s endpoints quote; a part of erase';

-- Evaluates an endpoint's filter. False only if it is clearly false: null if jsonb cannot hold the payload (\u0000), or
-- if the filter is neither true nor false. A filter that takes too long is cancelled nevertheless.
create or replace function webhooks.matches(payload json, filter jsonpath) returns boolean
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as $$
begin
  return payload::jsonb @@ filter;
exception when others then
  return null;
end $$;
comment on function webhooks.matches is
  'The result of a filter for a payload; null if it is neither true nor false, or cannot be evaluated';

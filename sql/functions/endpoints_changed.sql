-- Trigger of endpoints: notifies the daemon of the endpoints that a statement added, changed or deleted, up to 200 by
-- their ids.
create or replace function webhooks.endpoints_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
declare
  ids bigint[];
begin
  if current_setting('webhooks.bell', true) is distinct from 'off' then
    select array_agg(endpoint_id) into ids from (select endpoint_id from changed limit 201) c;
    if cardinality(ids) <= 200 then
      perform pg_notify('pghookd', 'endpoints:' || array_to_string(ids, ','));
    elsif ids is not null then
      perform pg_notify('pghookd', 'endpoints');
    end if;
  end if;
  return null;
end $$;

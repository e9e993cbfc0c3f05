-- Trigger of UPDATE on endpoints: an endpoint whose requests would be others has to be judged again.
create or replace function webhooks.unjudge_endpoint() returns trigger
language plpgsql security definer set search_path = pg_catalog, webhooks, pg_temp as $$
begin
  new.ready := null;
  new.why := null;
  new.judged_at := null;
  return new;
end $$;

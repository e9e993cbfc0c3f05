-- Holds a site to sites.endpoints_max when an endpoint moves to it.
-- needs: check_moved_endpoint
create or replace trigger endpoints_max_moved after update of site_id on webhooks.endpoints
  for each row when (old.site_id is distinct from new.site_id) execute function webhooks.check_moved_endpoint();

-- Holds a site to sites.endpoints_max when it gets endpoints.
-- needs: check_endpoints_max
create or replace trigger endpoints_max_added after insert on webhooks.endpoints
  referencing new table as changed for each statement execute function webhooks.check_endpoints_max();

-- Has the daemon judge an endpoint again if its requests would be others.
-- needs: unjudge_endpoint
create or replace trigger endpoints_unjudged before update on webhooks.endpoints
  for each row when ((old.url, old.secret, old.previous_secret, old.auth, old.headers, old.profile, old.profile_spec,
    old.filter::text, old.retry_schedule, old.success_statuses, old.timeout_s, old.rate_per_s)
  is distinct from (new.url, new.secret, new.previous_secret, new.auth, new.headers, new.profile, new.profile_spec,
    new.filter::text, new.retry_schedule, new.success_statuses, new.timeout_s, new.rate_per_s))
  execute function webhooks.unjudge_endpoint();

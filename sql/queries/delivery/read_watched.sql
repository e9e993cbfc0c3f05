-- Endpoints with an incident, and their latest failure: their successes are noted. Read once an epoch.
select endpoint_id, last_failure_at from webhooks.incidents where state <> 'healthy'

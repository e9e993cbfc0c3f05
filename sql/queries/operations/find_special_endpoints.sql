-- Enabled endpoints with a secret or an option that SQL cannot judge. Not more than 10,000.
select endpoint_id from webhooks.endpoints
where enabled and (headers <> '{}' or profile <> 'standard' or secret like 'whsk\_%' or secret like 'enc:%'
  or num_nonnulls(retry_schedule, success_statuses, previous_secret, auth) > 0)
order by endpoint_id limit 10000

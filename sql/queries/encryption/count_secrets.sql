-- Counts the endpoints with secrets or auth.
select count(*) from webhooks.endpoints where num_nonnulls(secret, previous_secret, auth) > 0

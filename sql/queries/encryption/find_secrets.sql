-- Endpoints with secrets or auth, in pages. $1 bigint: the last one seen; $2 int: how many. Lives on the primary key.
select endpoint_id, secret, previous_secret, secret_kind, auth #>> '{}' as auth from webhooks.endpoints
where endpoint_id > $1 and num_nonnulls(secret, previous_secret, auth) > 0
order by endpoint_id
limit $2

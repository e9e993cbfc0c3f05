-- Endpoints with a secret, or with auth, that is not encrypted. $1 int: how many. Lives on endpoints_plain.
select endpoint_id, secret, previous_secret, secret_kind, auth #>> '{}' as auth from webhooks.endpoints
where left(secret, 7) <> 'enc:v1:' or left(previous_secret, 7) <> 'enc:v1:' or jsonb_typeof(auth) = 'object'
order by endpoint_id
limit $1

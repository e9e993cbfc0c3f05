-- Endpoints with a secret that is not encrypted. $1 int: how many. Lives on endpoints_plain.
select endpoint_id, secret, previous_secret, secret_kind from webhooks.endpoints
where left(secret, 7) <> 'enc:v1:' or left(previous_secret, 7) <> 'enc:v1:'
order by endpoint_id
limit $1

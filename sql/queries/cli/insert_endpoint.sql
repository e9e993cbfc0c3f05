-- An endpoint of the demo. $1 text: site; $2 text: description; $3 text: URL; $4 text[]: event types; $5 text: secret.
insert into webhooks.endpoints (site_id, description, url, event_types, secret) values ($1, $2, $3, $4, $5)
returning endpoint_id, secret

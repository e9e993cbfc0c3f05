-- Sends the deliveries of an endpoint of the demo to this run's receiver; no row if there is no such endpoint. $1 text:
-- site; $2 text: description; $3 text: URL.
update webhooks.endpoints set url = $3, enabled = true where site_id = $1 and description = $2
returning endpoint_id, secret

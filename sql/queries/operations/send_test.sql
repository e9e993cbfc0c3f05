-- Sends a test event to one endpoint; returns its event_id. $1 bigint: endpoint id; $2 text: its type.
select webhooks.send_test($1, $2)

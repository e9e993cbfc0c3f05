-- Switches an endpoint on; returns how many held deliveries are released. $1 bigint: endpoint id; $2 text: the fate of
-- these: deliver, drop or latest_per_key.
select webhooks.enable_endpoint($1, $2)

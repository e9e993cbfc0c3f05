-- Switches an endpoint off. $1 bigint: endpoint id.
select webhooks.disable_endpoint($1)

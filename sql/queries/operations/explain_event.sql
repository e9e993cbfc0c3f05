-- Explains where an event went. $1 bigint: event_id.
select endpoint_id, at, what, detail from webhooks.explain($1)

-- The endpoints with their health. $1 text: of this site; null: of all.
select * from webhooks.endpoint_health where $1::text is null or site_id = $1 order by site_id, endpoint_id

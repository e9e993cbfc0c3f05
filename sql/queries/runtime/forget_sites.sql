-- Goes on with erasing the sites that are to be forgotten, a page of each. $1 int: events to look at. No row, or null:
-- there is nothing to do now.
select site_id, webhooks.forget_page(site_id, $1) as erased from webhooks.forgotten order by asked_at limit 10

-- Erases a page of each site that was forgotten. $1 int: events to read. No row, or null: there is nothing to do now.
select site_id, webhooks.forget_page(site_id, $1) as erased from webhooks.forgotten order by asked_at limit 10

-- Erases the events that have been settled since, of subjects that are being erased. Returns how many events of each;
-- null: another session is at it.
select webhooks.erase_subject(site_id, subject) as erased from webhooks.erasures order by asked_at limit 10

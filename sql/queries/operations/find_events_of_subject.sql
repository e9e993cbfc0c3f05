-- The newest events of a site with a subject, newest first. $1 text: the site; $2 text: the subject; $3 int: rows. Lives
-- on events_by_subject.
select event_id from webhooks.events
where site_id = $1 and left(subject, 400) = left($2, 400) and subject = $2
order by event_id desc
limit $3

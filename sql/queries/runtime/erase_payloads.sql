-- Erases payloads in a page of the log. $1 float8: days; $2 int: events to read.
select erased, ended from webhooks.erase_payloads($1, $2)

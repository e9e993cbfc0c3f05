-- Erases answers in a page of attempts. $1 float8: days; $2 int: attempts to read.
select erased, ended from webhooks.erase_responses($1, $2)

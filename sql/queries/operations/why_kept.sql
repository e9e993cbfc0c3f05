-- The reasons that keep a day from being removed by retention. $1 int: the day, as webhooks.day_of() counts days.
select webhooks.why_kept($1)

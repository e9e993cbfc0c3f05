-- Today by the server's clock, as webhooks.day_of() counts days.
select webhooks.day_of()

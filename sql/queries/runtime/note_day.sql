-- In a later transaction than attach_day: notes the producers that may not know the day yet. $1 int: the day.
select webhooks.note_day($1)

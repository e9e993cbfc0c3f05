-- Drops the detached table of a day: {table} and {day} are written into the text.
drop table webhooks.{table}_{day}

-- Drops what was the partition of a day: {table} and {day} are written into the text.
drop table webhooks.{table}_{day}

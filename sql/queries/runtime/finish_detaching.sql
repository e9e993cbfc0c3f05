-- Ends the detachment of a partition that was interrupted, by a crash or by lock_timeout: {table} and {day} are written
-- into the text.
alter table webhooks.{table} detach partition webhooks.{table}_{day} finalize

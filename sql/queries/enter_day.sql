-- Moves the sequence into today once nobody is left who may not know its partition; false: not yet, or there already.
select webhooks.enter_day(webhooks.day_of())

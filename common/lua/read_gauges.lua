-- Read what engines' gauges say, with the time that tells their age.
--
-- KEYS[1] HASH    gauges of a model: endpoint -> text
-- Returns the time in ms of Redis' clock, then the flat list of endpoints and texts.
local time = redis.call('TIME')
local all = redis.call('HGETALL', KEYS[1])
table.insert(all, 1, time[1] * 1000 + math.floor(time[2] / 1000))
return all

-- Write what engines' gauges say, and tell the time that samples are dated by.
--
-- KEYS[1] HASH    gauges of a model: endpoint -> text
-- ARGV[1] seconds without a write after which the key goes
-- ARGV[2...] endpoints and texts; none to ask for the time alone
-- Returns the time in ms of Redis' clock.
local time = redis.call('TIME')
if #ARGV > 1 then
  -- A full Redis (OOM) lets a script write on that has begun by deleting.
  redis.call('HDEL', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return time[1] * 1000 + math.floor(time[2] / 1000)

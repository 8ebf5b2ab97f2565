-- Count a request against its tenant's limits, unless it must wait, and settle earlier ones.
--
-- What is used drains at the rate of the limit, so a full minute's worth may come at once.
--
-- KEYS[1] HASH    what the tenant has used: `requests`, `tokens`, and `at` in ms of Redis' clock
-- ARGV[1] requests per minute, 0 for no limit
-- ARGV[2] tokens per minute, alike
-- ARGV[3] requests to take: 1, or 0 to settle alone
-- ARGV[4] tokens to take
-- ARGV[5] tokens that earlier requests used beyond what they took; below 0: that they did not
-- ARGV[6] minutes that a tenant may be in debt at most
-- Returns requests used, tokens used, ms to wait for requests, ms to wait for tokens; what was to be
-- taken was, if both are 0.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'at')
local minutes = math.max(0, now - (tonumber(known[3]) or now)) / 60000
local most = tonumber(ARGV[6])

local function used(text, rate, more)
  local sum = (tonumber(text) or 0) - minutes * rate
  return math.min(math.max(0, sum) + more, most * rate)
end

local function wait(level, more, rate)
  -- What is over a whole minute's worth is let in when nothing else is under way.
  local over = level + math.min(more, rate) - rate
  if rate == 0 or over <= 0 then
    return 0
  end
  return math.ceil(over / rate * 60000)
end

local rates = {tonumber(ARGV[1]), tonumber(ARGV[2])}
local requests = used(known[1], rates[1], 0)
local tokens = math.max(0, used(known[2], rates[2], tonumber(ARGV[5])))
local waits = {wait(requests, tonumber(ARGV[3]), rates[1]), wait(tokens, tonumber(ARGV[4]), rates[2])}
if waits[1] == 0 and waits[2] == 0 then
  requests = math.min(requests + ARGV[3], most * rates[1])
  tokens = math.min(tokens + ARGV[4], most * rates[2])
end
-- A full Redis (OOM) lets a script write on that has begun by deleting.
redis.call('HDEL', KEYS[1], 'at')
redis.call('HSET', KEYS[1], 'requests', requests, 'tokens', tokens, 'at', string.format('%.0f', now))
redis.call('EXPIRE', KEYS[1], 60 * (most + 1))
return {math.ceil(requests), math.ceil(tokens), waits[1], waits[2]}

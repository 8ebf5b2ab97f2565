-- Take an endpoint under a lease: from here on only the taker may write it.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    owners of the shard: endpoint -> "INDEXER FENCE UNTIL", UNTIL in ms of Redis' clock
-- ARGV[1] name of the endpoint
-- ARGV[2] id of the indexer
-- ARGV[3] ms for which the lease holds
-- Returns the fence: a number that grows with every owner; 0 when another's lease still holds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = redis.call('HGET', KEYS[2], ARGV[1])
if lease then
  local owner, _, till = string.match(lease, '^(%S+) (%d+) (%d+)$')
  if owner and owner ~= ARGV[2] and tonumber(till) > now then
    return 0
  end
end
-- A time, not a counter: a Redis that lost its data must never repeat a fence.
local known = tonumber(redis.call('HGET', KEYS[1], 'fence')) or 0
local fence = math.max(known + 1, now)
local text = string.format('%.0f', fence)
-- A full Redis (OOM) lets a script write on that has begun by deleting.
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], 'fence', text, 'owner', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1],
  string.format('%s %s %.0f', ARGV[2], text, now + tonumber(ARGV[3])))
return fence

-- Renew an indexer's leases in one shard, and tell who owns what.
--
-- A lease that is over may be renewed, as long as nobody else has taken the endpoint.
--
-- KEYS[1] HASH    owners of the shard: endpoint -> "INDEXER FENCE UNTIL", UNTIL in ms of Redis' clock
-- ARGV[1] id of the indexer
-- ARGV[2] ms for which leases hold
-- ARGV[3...] endpoints and fences
-- Returns the time in ms, then the flat list of endpoints and leases as they stand afterwards.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local till = string.format('%.0f', now + tonumber(ARGV[2]))
for i = 3, #ARGV, 2 do
  local mine = ARGV[1] .. ' ' .. ARGV[i + 1] .. ' '
  local lease = redis.call('HGET', KEYS[1], ARGV[i])
  if lease and string.sub(lease, 1, #mine) == mine then
    -- A full Redis (OOM) lets a script write on that has begun by deleting.
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('HSET', KEYS[1], ARGV[i], mine .. till)
  end
end
local all = redis.call('HGETALL', KEYS[1])
table.insert(all, 1, now)
return all

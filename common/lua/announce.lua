-- Say that an indexer is alive, and ask which ones are.
--
-- KEYS[1] HASH    indexers: id -> time of its last sign of life, in ms of Redis' clock
-- ARGV[1] id of the indexer
-- ARGV[2] ms after which one without a sign counts as dead, and is taken out
-- Returns 1 when Redis did not know of the caller, else 0; then the ids of those that are alive.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A full Redis (OOM) lets a script write on that has begun by deleting.
local new = 1 - redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now))
local alive, all = { new }, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if now - (tonumber(all[i + 1]) or 0) <= tonumber(ARGV[2]) then
    alive[#alive + 1] = all[i]
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return alive

-- Give a pool of an endpoint its holder id for this epoch.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    holders of the shard: holder id -> text, "version" (changes with every change) and
--                 "floor" (ids that are given out are not below it; absent: 1)
-- KEYS[3] HASH    dead holders of the shard: ids that may still stand in entries
-- ARGV[1] fence of the caller
-- ARGV[2] epoch of the caller
-- ARGV[3] pool, as "gpu/0"
-- ARGV[4] text of the holder
-- ARGV[5...] further fields and values of the state
-- Returns the smallest id that is in no use, or -1 when the epoch is another, or -2 the owner.
-- A time, not a counter: a Redis that lost its data must never repeat a version.
local function touch_version()
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[2], 'version', string.format('%s.%06d', now[1], now[2]))
end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'fence')
if state[2] ~= ARGV[1] then
  return -2
end
if state[1] ~= ARGV[2] then
  return -1
end
local known = redis.call('HGET', KEYS[1], 'holder:' .. ARGV[3])
if known then
  return tonumber(known)
end
local id = tonumber(redis.call('HGET', KEYS[2], 'floor')) or 1
while redis.call('HEXISTS', KEYS[2], id) == 1 or redis.call('HEXISTS', KEYS[3], id) == 1 do
  id = id + 1
end
redis.call('HSET', KEYS[2], id, ARGV[4])
touch_version()
redis.call('HSET', KEYS[1], 'holder:' .. ARGV[3], id, unpack(ARGV, 5))
return id

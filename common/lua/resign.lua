-- Give an endpoint back, so that another indexer can take it at once.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    owners of the shard
-- ARGV[1] name of the endpoint
-- ARGV[2] fence of the caller
-- Returns 1, or 0 when the endpoint is no longer the caller's.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[2], ARGV[1])
-- The next fence, so that nothing under this one is taken any more.
redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', tonumber(ARGV[2]) + 1), 'owner', '')
return 1

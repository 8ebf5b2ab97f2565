-- Forget an endpoint for good, after its last epoch has been ended.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    memory of its owner
-- KEYS[3] HASH    owners of the shard
-- KEYS[4] SET     names of the endpoints that the shard has a state for
-- KEYS[5] HASH    relearning
-- ARGV[1] fence of the caller
-- ARGV[2] name of the endpoint
-- Returns 1, or 0 when the endpoint is no longer the caller's.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('SREM', KEYS[4], ARGV[2])
redis.call('HDEL', KEYS[5], ARGV[2])
return 1

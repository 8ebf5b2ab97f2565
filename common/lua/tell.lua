-- Write how an endpoint's owner stands with it.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    relearning: endpoint -> epoch, of its own, so that routers read one small key
--                 instead of every state
-- ARGV[1] fence of the caller
-- ARGV[2] name of the endpoint
-- ARGV[3] epoch in which routers are to have its hits announced, or ""
-- ARGV[4...] fields and values
-- Returns 1, or 0 when the endpoint is no longer the caller's.
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return 0
end
-- A full Redis (OOM) lets a script write on that has begun by deleting.
redis.call('HDEL', KEYS[1], ARGV[4])
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[2], ARGV[2])
else
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
return 1

-- Begin a new epoch of an endpoint's cache: forget in one write what its former epoch held.
--
-- KEYS[1] HASH    state of the endpoint (fields: epoch, seq, blocks, reason, ...)
-- KEYS[2] HASH    holders of the shard: holder id -> text, and "version" (changes with every change)
-- KEYS[3] HASH    dead holders of the shard: holder id -> text
-- KEYS[4] SET     names of the endpoints that the shard has a state for
-- KEYS[5] HASH    memory of the owner
-- ARGV[1] fence of the caller
-- ARGV[2] epoch that the caller believes in, or "" to take whatever is there
-- ARGV[3] sequence that the index stands at from here on (-1: before the first batch)
-- ARGV[4] why, one word
-- ARGV[5] Unix time in seconds, for people
-- ARGV[6] name of the endpoint
-- ARGV[7] "1" when the owner has forgotten, too: nobody can resume what was
-- ARGV[8...] further fields and values of the state
-- Returns the new epoch, or -1 when the endpoint has another epoch than the caller believes, or -2
-- when it has another owner.
--
-- It begins with a deletion, so that a full Redis (maxmemory) lets it go on: forgetting must always
-- be possible. Ids that only the state or only the holders name (a key was lost) die as well.
-- A time, not a counter: a Redis that lost its data must never repeat a version.
local time = redis.call('TIME')
local now = string.format('%s.%06d', time[1], time[2])

if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return -2
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if ARGV[2] ~= '' and epoch and epoch ~= ARGV[2] then
  return -1
end
redis.call('HDEL', KEYS[1], 'seq')
local own = 'endpoint=' .. ARGV[6] .. ' '
local function bury(id, text)
  -- With the time, so that the sweep can tell it from another one under the same id.
  redis.call('HSET', KEYS[3], id, text .. ' died=' .. now)
  redis.call('HDEL', KEYS[2], id)
end
local state = redis.call('HGETALL', KEYS[1])
for i = 1, #state, 2 do
  if string.sub(state[i], 1, 7) == 'holder:' then
    local text = redis.call('HGET', KEYS[2], state[i + 1]) or own
    if string.sub(text, 1, #own) == own then
      bury(state[i + 1], text)
    end
    redis.call('HDEL', KEYS[1], state[i])
  end
end
if not epoch then
  local holders = redis.call('HGETALL', KEYS[2])
  for i = 1, #holders, 2 do
    if string.sub(holders[i + 1], 1, #own) == own then
      bury(holders[i], holders[i + 1])
    end
  end
end
redis.call('HSET', KEYS[2], 'version', now)
redis.call('SADD', KEYS[4], ARGV[6])
if ARGV[7] == '1' then
  redis.call('HDEL', KEYS[1], 'proof')
  redis.call('HDEL', KEYS[5], 'outline')
end
-- A Redis that lost its data must not hand out an epoch that a caller already knows.
local base = tonumber(epoch or ARGV[2]) or 0
local fresh = base + 1
redis.call('HSET', KEYS[1], 'epoch', fresh, 'seq', ARGV[3], 'part', 0, 'blocks', 0, 'reason', ARGV[4],
  'since', ARGV[5], unpack(ARGV, 8))
return fresh

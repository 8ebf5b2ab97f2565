-- Apply what batches of events changed: one endpoint, in order, once.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    memory of the owner: what its successor needs
-- KEYS[3...] HASH bucket of each block, in the order of ARGV[10]; field = last 12 hex digits of the
--                 block hash, value = ids of its holders in ascending order with a blank between
--                 them ("3 17 204")
-- ARGV[1] fence of the caller
-- ARGV[2] epoch of the caller
-- ARGV[3] sequence that the index stands at by the caller's knowledge
-- ARGV[4] parts of what follows that were written since, by the caller's knowledge
-- ARGV[5] sequence that it stands at afterwards; equal to ARGV[3] when more of the same follows
-- ARGV[6] parts that were written since, afterwards
-- ARGV[7] time stamp of the newest event, Unix seconds
-- ARGV[8] proof: sequence and digest of the last batch, by which a successor knows the engine's
--         life; "" leaves it as it is
-- ARGV[9] runs of blocks: "+17:32 -4:1" is that holder 17 has the first 32 blocks of ARGV[10], and
--         holder 4 the next one no longer
-- ARGV[10] the blocks: 16 hex digits each
-- ARGV[11...] fields and values of the memory
-- Returns the number of entries changed, or -1 when epoch, sequence or parts are others, or -2 when
-- the owner is: nothing was written. Where buckets are of another type than ours: a list of the
-- number of entries changed and of those left out.
--
-- A full Redis (OOM) refuses what may grow unless the script has written before. So stores that
-- come first are refused, all with them, and removals, which delete before they set, are not.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'part', 'fence')
if state[4] ~= ARGV[1] then
  return -2
end
if state[1] ~= ARGV[2] or state[2] ~= ARGV[3] or (state[3] or '0') ~= ARGV[4] then
  return -1
end

-- Give the value with an id in its place; ids are given out in order, so it mostly is the last.
local function with(value, id)
  local number, last = tonumber(id), tonumber(string.match(value, '%d+$', -20) or '')
  if not last then
    return id -- what stood there is no list of ours
  end
  if last < number then
    return value .. ' ' .. id
  end
  for at, other in string.gmatch(value, '()(%d+)') do
    if tonumber(other) > number then
      return string.sub(value, 1, at - 1) .. id .. ' ' .. string.sub(value, at)
    end
  end
end

local call, sub, foreign = redis.call, string.sub, 0

local function read(key, field)
  local value = redis.pcall('HGET', key, field)
  if type(value) ~= 'table' then
    return value, true
  end
  if not string.find(value.err, 'WRONGTYPE', 1, true) then
    return call('HGET', key, field) -- raises it as it is
  end
  foreign = foreign + 1
  return nil, false
end

local function store(key, field, id)
  local value, is_ours = read(key, field)
  if not is_ours then
    return 0
  end
  if not value then
    call('HSET', key, field, id)
    return 1
  end
  if string.find(' ' .. value .. ' ', ' ' .. id .. ' ', 1, true) then
    return 0
  end
  call('HSET', key, field, with(value, id))
  return 1
end

local function remove(key, field, id)
  local value = read(key, field)
  if value == id then
    return call('HDEL', key, field)
  end
  if not value then
    return 0
  end
  local padded = ' ' .. value .. ' '
  local before, last = string.find(padded, ' ' .. id .. ' ', 1, true)
  if not before then
    return 0
  end
  call('HDEL', key, field)
  local rest = sub(padded, 1, before) .. sub(padded, last + 1)
  call('HSET', key, field, sub(rest, 2, -2))
  return 1
end

local blocks, at, stored, removed = ARGV[10], 1, 0, 0
for sign, id, count in string.gmatch(ARGV[9], '([+-])(%d+):(%d+)') do
  for i = at, at + count - 1 do
    local key, field = KEYS[i + 2], sub(blocks, 16 * i - 11, 16 * i)
    if sign == '+' then
      stored = stored + store(key, field, id)
    else
      removed = removed + remove(key, field, id)
    end
  end
  at = at + count
end
-- Deleted first, so that a full Redis lets it move.
call('HDEL', KEYS[1], 'seq')
call('HSET', KEYS[1], 'seq', ARGV[5], 'part', ARGV[6], 'event_time', ARGV[7])
if ARGV[8] ~= '' then
  call('HSET', KEYS[1], 'proof', ARGV[8])
end
for i = 11, #ARGV, 2 do
  call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
if stored ~= removed then
  call('HINCRBY', KEYS[1], 'blocks', stored - removed)
end
return foreign > 0 and { stored + removed, foreign } or stored + removed

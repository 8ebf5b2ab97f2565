-- Apply what batches of events changed: one endpoint, in order, once.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2] HASH    memory of the owner: what its successor needs
-- KEYS[3...] HASH buckets: field = last 12 hex digits of a block hash, value = ids of its holders
--                 in ascending order with a blank between them ("3 17 204")
-- ARGV[1] fence of the caller
-- ARGV[2] epoch of the caller
-- ARGV[3] sequence that the index stands at by the caller's knowledge
-- ARGV[4] sequence that it stands at afterwards; equal to ARGV[3] when more of the same follows
-- ARGV[5] time stamp of the newest event, Unix seconds
-- ARGV[6] proof: sequence and digest of the last batch, by which a successor knows its life
-- ARGV[7] number of fields of the memory that follow
-- ARGV[8...] fields and values of the memory; then
--                 field and change for KEYS[3]; the same for KEYS[4]; ...
--                 a change is "+17" (holder 17 has the block) or "-17" (no longer)
-- Returns the number of entries changed, or -1 when epoch or sequence are others, or -2 when the
-- owner is: nothing was written.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'fence')
if (state[3] or '0') ~= ARGV[1] then
  return -2
end
if state[1] ~= ARGV[2] or state[2] ~= ARGV[3] then
  return -1
end

local function without(value, id)
  local kept = {}
  for other in string.gmatch(value, '%d+') do
    if other ~= id then
      kept[#kept + 1] = other
    end
  end
  return table.concat(kept, ' '), #kept
end

local function with(value, id)
  local number, kept, placed = tonumber(id), {}, false
  for other in string.gmatch(value, '%d+') do
    if not placed and tonumber(other) > number then
      kept[#kept + 1] = id
      placed = true
    end
    kept[#kept + 1] = other
  end
  if not placed then
    kept[#kept + 1] = id
  end
  return table.concat(kept, ' ')
end

local first = 8 + 2 * tonumber(ARGV[7])
for i = 8, first - 1, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
local changed, blocks = 0, 0
for i = 3, #KEYS do
  local at = first + 2 * (i - 3)
  local key, field, change = KEYS[i], ARGV[at], ARGV[at + 1]
  local id = string.sub(change, 2)
  local value = redis.call('HGET', key, field)
  local held = value and string.find(' ' .. value .. ' ', ' ' .. id .. ' ', 1, true)
  if string.byte(change) == 43 then -- '+'
    if not held then
      redis.call('HSET', key, field, value and with(value, id) or id)
      changed, blocks = changed + 1, blocks + 1
    end
  elseif held then
    local rest, count = without(value, id)
    redis.call('HDEL', key, field)
    if count > 0 then
      redis.call('HSET', key, field, rest)
    end
    changed, blocks = changed + 1, blocks - 1
  end
end
redis.call('HSET', KEYS[1], 'seq', ARGV[4], 'event_time', ARGV[5], 'proof', ARGV[6])
if blocks ~= 0 then
  redis.call('HINCRBY', KEYS[1], 'blocks', blocks)
end
return changed

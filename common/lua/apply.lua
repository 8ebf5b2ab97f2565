-- Apply what batches of events changed: one endpoint, in order, once.
--
-- KEYS[1] HASH    state of the endpoint
-- KEYS[2...] HASH buckets: field = last 12 hex digits of a block hash, value = ids of its holders
--                 in ascending order with a blank between them ("3 17 204")
-- ARGV[1] epoch of the caller
-- ARGV[2] sequence that the index stands at by the caller's knowledge
-- ARGV[3] sequence that it stands at afterwards; equal to ARGV[2] when more of the same follows
-- ARGV[4] time stamp of the newest event, Unix seconds
-- ARGV[5], ARGV[6] field and change for KEYS[2]; ARGV[7], ARGV[8] for KEYS[3]; ...
--                 a change is "+17" (holder 17 has the block) or "-17" (no longer)
-- Returns the number of entries changed, or -1 when epoch or sequence are others: write nothing.
-- Where buckets are of another type than ours: a list of that number and of the entries left out.
--
-- A full Redis (maxmemory) refuses a script whose first write needs memory, and lets go on one
-- that has begun with a deletion. So changes come with those that need memory first: they are
-- refused before anything is written. What only removes passes, also the note where the index
-- stands, for which a field is deleted first.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if state[1] ~= ARGV[1] or state[2] ~= ARGV[2] then
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

local changed, blocks, foreign = 0, 0, 0
for i = 2, #KEYS do
  local key, field, change = KEYS[i], ARGV[2 * i + 1], ARGV[2 * i + 2]
  local id = string.sub(change, 2)
  local value = redis.pcall('HGET', key, field)
  local is_ours = type(value) ~= 'table'
  local held = is_ours and value and string.find(' ' .. value .. ' ', ' ' .. id .. ' ', 1, true)
  if not is_ours then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then
      return value
    end
    foreign = foreign + 1
  elseif string.byte(change) == 43 then -- '+'
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
if changed == 0 then
  redis.call('HDEL', KEYS[1], 'event_time')
end
redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'event_time', ARGV[4])
if blocks ~= 0 then
  redis.call('HINCRBY', KEYS[1], 'blocks', blocks)
end
return foreign > 0 and {changed, foreign} or changed

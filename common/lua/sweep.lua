-- Take dead holders out of some buckets. Safe to repeat and to run beside writers.
--
-- KEYS[1] HASH    dead holders of the shard
-- KEYS[2...] HASH buckets
-- ARGV    ids of holders that were dead when the pass over all buckets began
-- Returns the number of entries changed.
local gone = {}
for _, id in ipairs(ARGV) do
  if redis.call('HEXISTS', KEYS[1], id) == 1 then
    gone[id] = true
  end
end
local changed = 0
for i = 2, #KEYS do
  local entries = redis.call('HGETALL', KEYS[i])
  for e = 1, #entries, 2 do
    local kept, lost = {}, false
    for id in string.gmatch(entries[e + 1], '%d+') do
      if gone[id] then
        lost = true
      else
        kept[#kept + 1] = id
      end
    end
    if lost then
      redis.call('HDEL', KEYS[i], entries[e])
      if #kept > 0 then
        redis.call('HSET', KEYS[i], entries[e], table.concat(kept, ' '))
      end
      changed = changed + 1
    end
  end
end
return changed

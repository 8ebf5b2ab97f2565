-- Take dead holders out of some buckets. Safe to repeat and to run beside writers.
--
-- KEYS[1] HASH    dead holders of the shard
-- KEYS[2...] HASH buckets
-- ARGV[1] bytes of fields and values after which it stops; the bucket that it is at is finished
-- ARGV[2...] ids of holders that were dead when the pass over all buckets began
-- Returns {number of buckets done, from the first one on, number of entries changed}.
local gone = {}
for i = 2, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    gone[ARGV[i]] = true
  end
end
local room, done, changed = tonumber(ARGV[1]), 0, 0
for i = 2, #KEYS do
  local entries = redis.call('HGETALL', KEYS[i])
  for e = 1, #entries, 2 do
    local field, value = entries[e], entries[e + 1]
    local kept, lost = {}, false
    for id in string.gmatch(value, '%d+') do
      if gone[id] then
        lost = true
      else
        kept[#kept + 1] = id
      end
    end
    if lost then
      redis.call('HDEL', KEYS[i], field)
      if #kept > 0 then
        redis.call('HSET', KEYS[i], field, table.concat(kept, ' '))
      end
      changed = changed + 1
    end
    room = room - #field - #value
  end
  done = done + 1
  if room <= 0 then
    break
  end
end
return {done, changed}

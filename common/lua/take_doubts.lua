-- Take the notes of doubt that routers have left on some endpoints: each is read once.
--
-- KEYS[1] HASH    doubts of the shard: endpoint -> epoch in decimal, a blank, words
-- KEYS[2] SET     names of the endpoints that the shard has a state for
-- ARGV[1] most notes that there may be; a hash with more is no router's work and is dropped unread
-- ARGV[2...] endpoints of the caller
-- Returns a flat list of endpoints and notes. Notes on endpoints that are not known are dropped.
local count = redis.call('HLEN', KEYS[1])
if count == 0 then
  return {}
end
if count > tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  return {}
end
local mine, notes = {}, {}
for i = 2, #ARGV do
  mine[ARGV[i]] = true
end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if mine[all[i]] then
    notes[#notes + 1], notes[#notes + 2] = all[i], all[i + 1]
    redis.call('HDEL', KEYS[1], all[i])
  elseif redis.call('SISMEMBER', KEYS[2], all[i]) == 0 then
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return notes

-- Take the notes of doubt that routers have left on some endpoints: each is read once.
--
-- KEYS[1] HASH    doubts of the shard: endpoint -> epoch in decimal, a blank, words
-- ARGV[1] most notes that there may be; a hash with more is no router's work and is dropped unread
-- ARGV[2...] endpoints
-- Returns a flat list of endpoints and notes.
local count = redis.call('HLEN', KEYS[1])
if count == 0 then
  return {}
end
if count > tonumber(ARGV[1]) then
  redis.call('DEL', KEYS[1])
  return {}
end
local notes = {}
for i = 2, #ARGV do
  local note = redis.call('HGET', KEYS[1], ARGV[i])
  if note then
    notes[#notes + 1], notes[#notes + 2] = ARGV[i], note
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return notes

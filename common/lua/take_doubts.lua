-- Take the notes of doubt that routers have left: each is read once.
--
-- KEYS[1] HASH    doubts of the shard: endpoint -> epoch in decimal, a blank, words
-- ARGV[1] most notes that are read; a hash with more is no router's work and is dropped unread
-- Returns a flat list of fields and values.
local count = redis.call('HLEN', KEYS[1])
if count == 0 then
  return {}
end
local notes = {}
if count <= tonumber(ARGV[1]) then
  notes = redis.call('HGETALL', KEYS[1])
end
redis.call('DEL', KEYS[1])
return notes

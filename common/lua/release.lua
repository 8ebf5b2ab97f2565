-- Give the ids of dead holders free, after a whole pass of the sweep.
--
-- An id whose text is another one than when the pass began stands for another holder, which died
-- during the pass: Redis lost its data meanwhile. Its entries await the next pass.
--
-- KEYS[1] HASH    dead holders of the shard: id -> text
-- ARGV[1...] ids and texts as they were when the pass began
-- Returns the number of ids that are free.
local freed = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    freed = freed + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return freed

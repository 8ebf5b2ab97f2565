-- Read who holds each block of a stretch of a chain, for groups that keep a window or a state.
--
-- Their sets neither shrink nor stay along a chain, so every block is read.
--
-- KEYS[1] HASH    holders of the shard; not read, it names the slot of the buckets
-- ARGV[1] prefix of the bucket keys (all in the slot of KEYS[1])
-- ARGV[2] the stretch: 8 bytes per block hash, big-endian, in order
-- Returns a flat list of (number of the run's last block, counted from 1 in the stretch, value of
-- the entries in the run, "" where nobody holds the blocks).
local prefix, chain = ARGV[1], ARGV[2]
local call, unpack, tohex = redis.pcall, struct.unpack, bit.tohex
local runs, last, at = {}, nil, 0
for i = 1, #chain / 8 do
  local bucket, high, low = unpack('>I2I2I4', chain, 8 * i - 7)
  local value = call('HGET', prefix .. tohex(bucket, 4), tohex(high, 4) .. tohex(low)) or ''
  if type(value) == 'table' then
    -- A bucket that has gone ahead while its slot moves to another node: nobody holds it here.
    if not string.find(value.err, 'non local key', 1, true) then
      error(value.err)
    end
    value = ''
  end
  if value == last then
    runs[at] = i
  else
    at = #runs + 1
    runs[at], runs[at + 1], last = i, value, value
  end
end
return runs

-- Find who holds how much of a chain of blocks, without reading every block.
--
-- KEYS[1] HASH    holders of the shard: holder id -> text, and "version"
-- ARGV[1] prefix of the bucket keys (all in the slot of KEYS[1])
-- ARGV[2] version of the holders that the caller knows, or ""
-- ARGV[3] the chain: 8 bytes per block hash, big-endian, from the first block on
-- Returns {version, holders, runs}: holders is empty when the caller's version is current, else
-- a flat list of fields and values; runs is a flat list of (number of the run's last block,
-- counted from 1, value of the entries in the run). The runs end before the first block that
-- nobody holds.
--
-- An engine frees the tail of a chain before its head, so sets of holders shrink along a chain
-- and equal values stand side by side: gallop from each run's start, then bisect to its end. Two
-- equal values with others between them (a rare hole) read as one run: that match is too long.
local prefix, chain = ARGV[1], ARGV[3]
local blocks = math.floor(#chain / 8)

local seen = {}
local function value_at(i)
  local value = seen[i]
  if value == nil then
    local hex = string.format('%02x%02x%02x%02x%02x%02x%02x%02x', string.byte(chain, 8 * i - 7, 8 * i))
    value = redis.pcall('HGET', prefix .. string.sub(hex, 1, 4), string.sub(hex, 5))
    if type(value) == 'table' then
      -- A bucket that has gone ahead while its slot moves to another node: nobody holds it here.
      if not string.find(value.err, 'non local key', 1, true) then
        error(value.err)
      end
      value = false
    end
    seen[i] = value
  end
  return value
end

local runs = {}
local first = 1
while first <= blocks do
  local value = value_at(first)
  if not value then
    break
  end
  local same, other, step = first, blocks + 1, 1
  while same + step < other do
    if value_at(same + step) == value then
      same = same + step
      step = step * 2
    else
      other = same + step
    end
  end
  while other - same > 1 do
    local middle = math.floor((same + other) / 2)
    if value_at(middle) == value then
      same = middle
    else
      other = middle
    end
  end
  runs[#runs + 1] = same
  runs[#runs + 1] = value
  first = same + 1
end

local version = redis.call('HGET', KEYS[1], 'version') or '0'
local holders = {}
if version ~= ARGV[2] then
  holders = redis.call('HGETALL', KEYS[1])
end
return {version, holders, runs}

-- Find who holds how much of chains of blocks, without reading every block.
--
-- KEYS[1] HASH    holders of the shard: holder id -> text, and "version"
-- ARGV[1] prefix of the bucket keys (all in the slot of KEYS[1])
-- ARGV[2] version of the holders that the caller knows, or ""
-- ARGV[3...] chains: 8 bytes per block hash, big-endian, from the first block on
-- Returns {version, holders, runs of the first chain, ...}: holders is empty when the caller's
-- version is current, else a flat list of fields and values; runs is a flat list of (number of the
-- run's last block, counted from 1, value of the entries in the run). The runs of a chain end
-- before the first block that nobody holds.
--
-- An engine frees the tail of a chain before its head, so sets of holders shrink along a chain
-- and equal values stand side by side: gallop from each run's start, then bisect to its end. Two
-- equal values with others between them (a rare hole) read as one run: that match is too long.
--
-- Lua hashes every byte of every string that it is given or makes, for 1.1 ns each: hence few
-- strings per block, and callers that thin long chains out.
local prefix = ARGV[1]
local call, unpack, tohex = redis.pcall, struct.unpack, bit.tohex

local function read(chain, i)
  local bucket, high, low = unpack('>I2I2I4', chain, 8 * i - 7)
  local value = call('HGET', prefix .. tohex(bucket, 4), tohex(high, 4) .. tohex(low))
  if type(value) == 'table' then
    -- A bucket that has gone ahead while its slot moves to another node: nobody holds it here.
    if not string.find(value.err, 'non local key', 1, true) then
      error(value.err)
    end
    value = false
  end
  return value
end

local function runs_of(chain)
  local runs, blocks, seen = {}, #chain / 8, {}
  local function value_at(i)
    local value = seen[i]
    if value == nil then
      value = read(chain, i)
      seen[i] = value
    end
    return value
  end

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
  return runs
end

local version = redis.call('HGET', KEYS[1], 'version') or '0'
local answer = {version, {}}
if version ~= ARGV[2] then
  answer[2] = redis.call('HGETALL', KEYS[1])
end
for i = 3, #ARGV do
  answer[i] = runs_of(ARGV[i])
end
return answer

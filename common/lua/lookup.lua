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
-- and equal values stand side by side: from each run's start go twice as far each time, or half way
-- to the nearest block that is known to differ, whichever is nearer. Two equal values with others
-- between them (a rare hole) read as one run: that match is too long.
--
-- Lua hashes every byte of every string that it is given or makes, for 1.1 ns each: hence few
-- strings per block, and callers that thin long chains out.
local prefix = ARGV[1]
local call, unpack, tohex = redis.pcall, struct.unpack, bit.tohex
local floor, min = math.floor, math.min

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
  local runs, first, last, value = {}, 1, 1, read(chain, 1)
  -- Blocks behind `last` that were read, the nearest on top; at the bottom the end of the chain.
  local ends, values, top = {#chain / 8 + 1}, {false}, 1
  while value do
    local bound, is_known = ends[top], values[top] == value
    local probe = 2 * last - first + 1
    if not is_known then
      probe = min(probe, floor((last + bound) / 2))
    end
    if is_known and probe >= bound then
      last, top = bound, top - 1
    elseif probe > last then
      local found = read(chain, probe)
      if found == value then
        last = probe
      else
        top = top + 1
        ends[top], values[top] = probe, found
      end
    else
      runs[#runs + 1], runs[#runs + 2] = last, value
      first, last, value, top = bound, bound, values[top], top - 1
    end
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

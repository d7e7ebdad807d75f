-- recall: claim cancelled requests by their names, wherever they stand in the queue, so that they are answered and not
-- run. Found by the scores that their producers gave them, so the queue's length does not matter. Sending it twice does
-- no harm: the second finds them claimed.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> owners that died on it
-- ARGV[1] lease, seconds   ARGV[2] random part of the owner tokens
-- ARGV[3] how many members of each range to pass over   ARGV[4] how many to look at   ARGV[5] how many ranges
-- ARGV[6..] lowest and highest score of each range, as ZRANGEBYSCORE takes them; behind them the claim keys
-- Returns this server's Unix seconds, how many members were looked at, then for each claim: claim key, owner token,
-- member, score, deaths, 1.
-- include _member
-- include _claim_key
-- include _is_named
-- include _same_submission
-- include _hold
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease_end = string.format('%.6f', now + tonumber(ARGV[1]))
local first_name = 6 + 2 * tonumber(ARGV[5])
local wanted, tokens = named(first_name)

local looked, found = 0, {}
for at = 6, first_name - 1, 2 do
  local low, high = ARGV[at], ARGV[at + 1]
  local page = redis.call('ZRANGEBYSCORE', KEYS[1], low, high, 'WITHSCORES', 'LIMIT', ARGV[3], ARGV[4])
  looked = looked + #page / 2
  for n = 1, #page, 2 do
    if is_named(page[n], wanted, tokens) then
      found[#found + 1] = { page[n], page[n + 1] }
    end
  end
end

local answer = { string.format('%.6f', now), looked }
for n, one in ipairs(found) do
  local member, score = one[1], one[2]
  if redis.call('ZREM', KEYS[1], member) == 1 then -- two ranges may have it in common
    local owner = ARGV[2] .. ':' .. n .. ':s=' .. score
    local claimed_as, deaths = hold(claim_key(member), member, owner, lease_end)
    if claimed_as then
      local place = #answer
      answer[place + 1] = claimed_as
      answer[place + 2] = owner
      answer[place + 3] = member
      answer[place + 4] = score
      answer[place + 5] = deaths
      answer[place + 6] = '1'
    end
  end
end
return answer

-- recall: claim cancelled requests by their claim keys, at any position of the queue, so that they are answered unsent.
-- It searches the scores that their producers gave them, so its cost does not depend on the queue's length. Sending it
-- twice does no harm: the second finds them claimed.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> number of owners that crashed
-- ARGV[1] lease, seconds   ARGV[2] random part of the owner tokens
-- ARGV[3] number of the range to start from (first call: 1)   ARGV[4] members of that range to skip
-- ARGV[5] maximum number of members to read   ARGV[6] maximum bytes of members; the first is read whatever its size
-- ARGV[7] number of ranges
-- ARGV[8..] lowest and highest score of each range, as ZRANGEBYSCORE takes them; then the claim keys
-- Returns this server's Unix seconds, the range to continue with (0: done), its members to skip, then
-- for each claim: claim key, owner token, member, score, crashed owners, 1.
-- include _run
-- include _remove_at
-- include _counted_as
-- include _member
-- include _claim_key
-- include _is_named
-- include _same_submission
-- include _hold
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease_end = string.format('%.6f', now + tonumber(ARGV[1]))
local range, passed = tonumber(ARGV[3]), tonumber(ARGV[4])
local looks, room, ranges = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local wanted, tokens = named(8 + 2 * ranges)
local answer = { string.format('%.6f', now), 0, 0 }
local looked = 0

-- The rank of the first member of a range, and the number of its members.
local function place_of(low, high)
  local is_open = string.sub(low, 1, 1) == '('
  local below = run('ZCOUNT', KEYS[1], '-inf', is_open and string.sub(low, 2) or '(' .. low)
  return below, run('ZCOUNT', KEYS[1], low, high)
end

probe_claims()
while range <= ranges do
  local rank, count = place_of(ARGV[6 + 2 * range], ARGV[7 + 2 * range])
  while passed < count do
    if looked > 0 and (room <= 0 or looked >= looks) then
      answer[2], answer[3] = range, passed
      return answer
    end
    local place = rank + passed
    local member, score = unpack(run('ZRANGE', KEYS[1], place, place, 'WITHSCORES'))
    local is_wanted, weight = is_named(member, wanted, tokens)
    room, looked = room - #member, looked + weight
    if is_wanted then
      local owner = ARGV[2] .. ':' .. looked .. ':s=' .. score
      local key, deaths = hold(member, place, owner, lease_end)
      count = count - 1
      if key then
        local last = #answer
        answer[last + 1] = key
        answer[last + 2] = owner
        answer[last + 3] = member
        answer[last + 4] = score
        answer[last + 5] = deaths
        answer[last + 6] = '1'
      end
    else
      passed = passed + 1
    end
  end
  range, passed = range + 1, 0
end
return answer

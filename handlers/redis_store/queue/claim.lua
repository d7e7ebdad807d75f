-- claim: take pending requests, lowest score first, under a lease. All or nothing for each of them.
-- Sending it twice takes more; what a lost reply took returns when its lease ends.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> owners that died on it
-- ARGV[1] how many at most   ARGV[2] lease, seconds   ARGV[3] random part of the owner tokens
-- ARGV[4] 1: only those whose score has passed, else 0
-- ARGV[5] 1: look whether they were cancelled (request-cancel:<id> holds their token; not declared), else 0
-- Returns this server's Unix seconds, then for each claim: claim key, owner token, member, score, deaths, and 1 if it
-- was cancelled, else 0.
-- include _member
-- include _claim_key
-- include _same_submission
-- include _hold
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local taken
if ARGV[4] == '1' then
  taken = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
  for at = 1, #taken, 2 do
    redis.call('ZREM', KEYS[1], taken[at])
  end
else
  taken = redis.call('ZPOPMIN', KEYS[1], ARGV[1])
end

local answer = { string.format('%.6f', now) }
local lease_end = string.format('%.6f', now + tonumber(ARGV[2]))
for at = 1, #taken, 2 do
  local member, score = taken[at], taken[at + 1]
  local owner = ARGV[3] .. ':' .. at .. ':s=' .. score
  local key = claim_key(member)
  local id, token = string.match(key, '^(.-)%z(.+)$')
  local is_cancelled = id and ARGV[5] == '1' and redis.call('GET', 'request-cancel:' .. id) == token
  local claimed_as, deaths = hold(key, member, owner, lease_end)
  if claimed_as then
    local place = #answer
    answer[place + 1] = claimed_as
    answer[place + 2] = owner
    answer[place + 3] = member
    answer[place + 4] = score
    answer[place + 5] = deaths
    answer[place + 6] = is_cancelled and '1' or '0'
  end
end
return answer

-- reclaim: give back to pending what owners hold whose lease ended; claim for the caller what killed too many.
-- Also mends claims and index where they disagree. Sending it twice does no harm.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> owners that died on it; expires a week after the last one
-- ARGV[1] how many at most   ARGV[2] deaths that are too many   ARGV[3] lease, seconds
-- ARGV[4] random part of the owner tokens
-- Returns this server's Unix seconds, how many went back to pending, then for each that is the caller's now:
-- claim key, owner token, member, score, deaths, 0.
-- include _member
-- include _queued_under
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease_end = string.format('%.6f', now + tonumber(ARGV[3]))

-- The score a member returns to: what our token remembers; else, for a claim of another processor, what its
-- producer gave it (deadline and sequence).
local function score_of(owner, member)
  local score = owner and string.match(owner, ':s=([^:]+)$')
  if score and tonumber(score) then
    return score
  end
  local _queue
  _queue, score = queued_under(member)
  return string.format('%.17g', score or now)
end

if redis.call('HLEN', KEYS[2]) > redis.call('ZCARD', KEYS[4]) then
  -- A claim without an index entry would never end: index it, its owner renews it if it lives. It may be anywhere
  -- in the hash, so all of it is read; this is rare, and mends all at once.
  for _, key in ipairs(redis.call('HKEYS', KEYS[2])) do
    redis.call('ZADD', KEYS[4], 'NX', lease_end, key)
  end
end

-- Claims of one id queued twice count together: the name that the second got from its claim is gone with the claim.
local function counted_as(key)
  return string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key
end

local returned = 0
local answer = { string.format('%.6f', now), 0 }
local ended = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', string.format('%.6f', now), 'LIMIT', 0, ARGV[1])
for at, key in ipairs(ended) do
  local member, owner = redis.call('HGET', KEYS[2], key), redis.call('HGET', KEYS[3], key)
  local deaths = member and redis.call('HINCRBY', KEYS[5], counted_as(key), 1) or 0
  if member and deaths >= tonumber(ARGV[2]) then
    local score = score_of(owner, member)
    local token = ARGV[4] .. ':' .. at .. ':s=' .. score
    redis.call('HSET', KEYS[3], key, token)
    redis.call('ZADD', KEYS[4], lease_end, key)
    local place = #answer
    answer[place + 1] = key
    answer[place + 2] = token
    answer[place + 3] = member
    answer[place + 4] = score
    answer[place + 5] = tostring(deaths)
    answer[place + 6] = '0'
  else
    if member then
      redis.call('ZADD', KEYS[1], score_of(owner, member), member)
      returned = returned + 1
    end
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[4], key)
  end
end
if #ended > 0 then
  redis.call('EXPIRE', KEYS[5], 604800)
end
answer[2] = returned
return answer

-- reclaim: return requests whose lease has ended to pending, or claim them for the caller if too many owners have
-- crashed. Also adds claims that are missing in the index. Sending it twice does no harm.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> number of owners that crashed; expires a week after the last one
-- ARGV[1] maximum number of claims   ARGV[2] redelivery limit: crashed owners   ARGV[3] lease, seconds
-- ARGV[4] random part of the owner tokens   ARGV[5] maximum bytes of members; the first is moved whatever its size
-- Returns this server's Unix seconds, the number of returned requests, then for each claim of the caller:
-- claim key, owner token, member, score, crashed owners, 0.
-- include _run
-- include _counted_as
-- include _member
-- include _queued_under
-- include _move_back
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease_end = string.format('%.6f', now + tonumber(ARGV[3]))
local room = tonumber(ARGV[5])

-- The score that a returned member gets: the one in our owner token, or for a claim of another processor the producer's
-- (deadline and sequence).
local function score_of(owner, member)
  local score = owner and string.match(owner, ':s=([^:]+)$')
  local number = score and tonumber(score)
  if number and number == number then
    return score
  end
  local _queue
  _queue, score = queued_under(member)
  return string.format('%.17g', score or now)
end

probe_moves()
probe('ZADD', KEYS[1], 'XX', 0, NO_NAME)
probe('ZADD', KEYS[4], 'XX', 0, NO_NAME)
if (try('HLEN', KEYS[2]) or 0) > run('ZCARD', KEYS[4]) then
  -- A claim without an index entry would never end, so add one; a live owner renews it. Such claims are rare and may be
  -- anywhere in the hash, so all of it is read.
  for _, key in ipairs(try('HKEYS', KEYS[2]) or {}) do
    run('ZADD', KEYS[4], 'NX', lease_end, key)
  end
end

local returned = 0
local answer = { string.format('%.6f', now), 0 }
local ended = run('ZRANGEBYSCORE', KEYS[4], '-inf', string.format('%.6f', now), 'LIMIT', 0, ARGV[1])
for at, key in ipairs(ended) do
  if room <= 0 and at > 1 then
    break -- before the next member, which may be large, is read
  end
  local member, owner = run('HGET', KEYS[2], key), run('HGET', KEYS[3], key)
  room = room - (member and #member or 0)
  if room < 0 and at > 1 then
    break
  end
  local deaths = member and try('HINCRBY', KEYS[5], counted_as(key), 1) or 0
  local is_dead = member and deaths >= tonumber(ARGV[2])
  if is_dead then
    local score = score_of(owner, member)
    local token = ARGV[4] .. ':' .. at .. ':s=' .. score
    is_dead = try('HSET', KEYS[3], key, token)
    if is_dead then
      run('ZADD', KEYS[4], lease_end, key)
      local place = #answer
      answer[place + 1] = key
      answer[place + 2] = token
      answer[place + 3] = member
      answer[place + 4] = score
      answer[place + 5] = tostring(deaths)
      answer[place + 6] = '0'
    end
  end
  if not is_dead then
    move_back(key, member, member and score_of(owner, member))
    returned = returned + (member and 1 or 0)
  end
end
if #ended > 0 then
  try('EXPIRE', KEYS[5], 604800)
end
answer[2] = returned
return answer

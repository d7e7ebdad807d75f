-- claim: take pending requests, lowest score first, under a lease. All or nothing for each of them.
-- Sending it twice takes more; what a lost reply took returns when its lease ends.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> owners that died on it
-- ARGV[1] how many at most   ARGV[2] lease, seconds   ARGV[3] random part of the owner tokens
-- ARGV[4] 1: only those whose score has passed, else 0
-- Returns this server's Unix seconds, then for each claim: claim key, owner token, member, score, deaths.
-- include _member
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function is_text(value)
  return type(value) == 'string' and value ~= ''
end

local function is_enveloped(fields)
  return type(fields['data']) == 'table' and (fields['internal'] ~= nil or fields['request_kind'] ~= nil)
end

-- Whether the fields before the payload tell id and token; an envelope's may stand behind it.
local function is_enough(fields)
  if fields['internal'] == nil and fields['request_kind'] == nil then
    return is_text(fields['id'])
  end
  return is_enveloped(fields) and fields['internal'] ~= nil and is_text(fields['data']['id'])
end

local function claim_key(member)
  local fields = read_member(member, is_enough) or {}
  local token = ''
  if is_enveloped(fields) then
    token = type(fields['internal']) == 'table' and fields['internal']['request_token']
    fields = fields['data']
  end
  if not is_text(fields['id']) then
    return redis.sha1hex(member)
  end
  return is_text(token) and fields['id'] .. '\0' .. token or fields['id']
end

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
  local deaths = redis.call('HGET', KEYS[5], key) or '0'
  if redis.call('HSETNX', KEYS[2], key, member) == 0 then
    key = key .. '\0' .. owner -- a live claim has this name: one id queued twice without a token
    redis.call('HSET', KEYS[2], key, member)
  end
  redis.call('HSET', KEYS[3], key, owner)
  redis.call('ZADD', KEYS[4], lease_end, key)
  local place = #answer
  answer[place + 1] = key
  answer[place + 2] = owner
  answer[place + 3] = member
  answer[place + 4] = score
  answer[place + 5] = deaths
end
return answer

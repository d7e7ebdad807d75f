-- receive_results: take the oldest results of a list under a lease; the durable result protocol (contract.md).
-- Leases that ended go back to the list first; results that were acknowledged, or are held, are dropped as doubles.
-- Sending it twice takes more.
-- KEYS[1] <results>                        list  results, oldest at the right
-- KEYS[2] <results>:result-claimed         hash  claim key -> result
-- KEYS[3] <results>:result-claim-owners    hash  claim key -> owner token
-- KEYS[4] <results>:result-claims-idx      zset  claim key, score = lease end, Unix milliseconds of this server
-- KEYS[5] <results>:result-ack-tombstones  zset  claim key, score = when it is forgotten, Unix milliseconds
-- ARGV[1] owner token   ARGV[2] lease, milliseconds   ARGV[3] how many at most
-- Returns two values for each result: claim key and result. A claim key that begins with a NUL holds what is no result.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local limit = tonumber(ARGV[3])

local ended = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 1000)
for at = #ended, 1, -1 do
  local result = redis.call('HGET', KEYS[2], ended[at])
  if result then
    redis.call('RPUSH', KEYS[1], result)
  end
  redis.call('HDEL', KEYS[2], ended[at])
  redis.call('HDEL', KEYS[3], ended[at])
  redis.call('ZREM', KEYS[4], ended[at])
end
local forgotten = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 1000)
if #forgotten > 0 then
  redis.call('ZREM', KEYS[5], unpack(forgotten))
end

local function claim_key(result, place)
  local is_read, fields = pcall(cjson.decode, result)
  local id = is_read and type(fields) == 'table' and fields['id']
  local token = id and fields['request_token']
  if not token or token == cjson.null then
    token = ''
  end
  if type(id) ~= 'string' or id == '' or type(token) ~= 'string' then
    return '\0unparsable-result\0' .. ARGV[1] .. ':' .. now .. ':' .. place
  end
  return token == '' and id or id .. '\0' .. token
end

local answer = {}
for _ = 1, 4 do
  local results = redis.call('RPOP', KEYS[1], limit - #answer / 2)
  if not results or #results == 0 then
    break
  end
  for place, result in ipairs(results) do
    local key = claim_key(result, #answer + place)
    if not redis.call('ZSCORE', KEYS[5], key) and redis.call('HSETNX', KEYS[3], key, ARGV[1]) == 1 then
      redis.call('HSET', KEYS[2], key, result)
      redis.call('ZADD', KEYS[4], now + tonumber(ARGV[2]), key)
      answer[#answer + 1] = key
      answer[#answer + 1] = result
    end
  end
  if #answer / 2 >= limit then
    break
  end
end
return answer

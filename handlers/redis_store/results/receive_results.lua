-- receive_results: take the oldest results of a list under a lease (the durable result protocol: see results.py).
-- Results whose lease has ended come first. A result with a token is dropped as a duplicate if the token
-- was acknowledged or is held; results without a token are never duplicates. A dead letter that is queued again gets a
-- second result, which is no duplicate of its error result. Sending it twice takes more.
-- KEYS[1] <results>                        list  results, oldest at the right
-- KEYS[2] <results>:result-claimed         hash  claim key -> result
-- KEYS[3] <results>:result-claim-owners    hash  claim key -> owner token
-- KEYS[4] <results>:result-claims-idx      zset  claim key, score = lease end, Unix milliseconds of this server
-- KEYS[5] <results>:result-ack-tombstones  zset  claim key, score = when it is forgotten, Unix milliseconds
-- ARGV[1] owner token   ARGV[2] lease, milliseconds   ARGV[3] maximum number of results
-- ARGV[4] maximum bytes of results; the first is taken whatever its size
-- ARGV[5] random part of the claim keys of results without a token
-- Returns two values for each result: claim key and result. A claim key that begins with a NUL marks an unreadable
-- result.
-- include _run
-- include _member
-- include _give_back
local clock = run('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local lease_end = now + tonumber(ARGV[2])

probe_giving_back() -- first: moves are allowed when memory is full
probe('ZADD', KEYS[4], 'XX', 0, NO_NAME)
probe('LTRIM', KEYS[1], 0, -1)
local answer, room = {}, tonumber(ARGV[4])

local function is_full()
  return #answer / 2 >= tonumber(ARGV[3]) or room <= 0 and #answer > 0
end

-- Whether the answer has room for this result. The result has been read, so its size counts in any case.
local function has_room(result)
  room = room - #result
  return room >= 0 or #answer == 0
end

local function add(key, result)
  run('ZADD', KEYS[4], lease_end, key)
  answer[#answer + 1] = key
  answer[#answer + 1] = result
end

-- Results whose lease has ended are leased again without returning them to the list, which would copy each five times.
for _, key in ipairs(run('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 1000)) do
  if is_full() then
    break
  end
  local result = run('HGET', KEYS[2], key)
  if not result then
    give_back(key)
  elseif has_room(result) then
    run('HSET', KEYS[3], key, ARGV[1])
    add(key, result)
  else
    break
  end
end
local forgotten = try('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 1000) or {}
if #forgotten > 0 then
  try('ZREM', KEYS[5], unpack(forgotten))
end

-- A large result has its token after its payload, at the very end, as the last field of the outermost object.
local function last_token(result)
  return string.match(string.sub(result, -HEAD), '[^\\],%s*"request_token"%s*:%s*"([^"\\]*)"%s*}%s*$')
end

local function is_duplicate(key)
  return run('ZSCORE', KEYS[5], key) or run('HEXISTS', KEYS[3], key) == 1
end

-- The claim key of a result: its id and token, with a mark for the result of a dead letter, or nil for a duplicate.
-- Without a token, its id, with a random part if the id is in use.
local function claim_key(result, place)
  local fields = read_member(result)
  local id = fields and fields['id']
  local token = fields and fields['request_token']
  local own = ARGV[5] .. ':' .. place
  if type(id) ~= 'string' or id == '' or token ~= nil and token ~= cjson.null and type(token) ~= 'string' then
    -- The id of a large result may come after the bytes that are read here; its reader decodes all of it.
    return #result > SMALL and string.find(result, '^%s*{') and own or '\0unparsable-result\0' .. own
  end
  if (token == nil or token == cjson.null) and #result > SMALL then
    token = last_token(result)
  end
  if type(token) == 'string' and token ~= '' and not string.find(id, '%z') then
    local key = id .. '\0' .. token
    if fields['error_code'] == 'UNDELIVERABLE' then
      key = key .. '\0dead'
    end
    return not is_duplicate(key) and key or nil
  end
  id = string.gsub(id, '%z', ' ')
  return is_duplicate(id) and id .. '\0' .. own or id
end

local function hold(key, result)
  run('HSET', KEYS[2], key, result)
  local owned = redis.pcall('HSET', KEYS[3], key, ARGV[1])
  if type(owned) == 'table' and owned.err then
    run('HDEL', KEYS[2], key)
    error(refused(owned, 'HSET', KEYS[3]))
  end
  add(key, result)
end

for place = 1, 4 * tonumber(ARGV[3]) do
  local result = not is_full() and run('LRANGE', KEYS[1], -1, -1)[1]
  if not result or not has_room(result) then
    break
  end
  local key = claim_key(result, place)
  if key then
    hold(key, result)
  end
  run('LTRIM', KEYS[1], 0, -2) -- RPOP would copy the result three more times, for its reply
end
return answer

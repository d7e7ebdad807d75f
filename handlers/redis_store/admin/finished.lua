-- finished: add records of finished requests, then drop the oldest beyond a number, a total of bytes and an age.
-- Sending it twice does no harm: a record replaces the one of the same id.
-- KEYS[1] {async-processor}:status:finished        hash    request id -> record (JSON)
-- KEYS[2] {async-processor}:status:finished-idx    zset    request id, score = when it was recorded, Unix seconds
-- KEYS[3] {async-processor}:status:finished-bytes  string  bytes of all ids and records
-- ARGV[1] maximum number of records  ARGV[2] maximum bytes  ARGV[3] seconds to keep
-- ARGV[4…] for each: request id, record
-- Returns the number of records that are kept.
local MOST_DROPPED = 2000
local clock = redis.call('TIME')
local now = tonumber(clock[1])
local bytes = tonumber(redis.call('GET', KEYS[3]) or '0')
local function forget(id)
  local record = redis.call('HGET', KEYS[1], id)
  if record then
    bytes = bytes - #id - #record
    redis.call('HDEL', KEYS[1], id)
  end
end
for n = 4, #ARGV, 2 do
  local id, record = ARGV[n], ARGV[n + 1]
  forget(id)
  redis.call('HSET', KEYS[1], id, record)
  redis.call('ZADD', KEYS[2], now, id)
  bytes = bytes + #id + #record
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[3]), 'LIMIT', 0, 1000)) do
  forget(id)
  redis.call('ZREM', KEYS[2], id)
end
local count = redis.call('ZCARD', KEYS[2])
for _ = 1, math.min(count, MOST_DROPPED) do -- more may remain after the limits were lowered
  if count <= tonumber(ARGV[1]) and bytes <= tonumber(ARGV[2]) then
    break
  end
  forget(redis.call('ZPOPMIN', KEYS[2])[1])
  count = count - 1
end
redis.call('SET', KEYS[3], math.max(0, bytes), 'EX', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return count

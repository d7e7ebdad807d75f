-- share_pool: record that this poller is alive and how many slots of a pool it uses, remove pollers whose lease has
-- ended, and return how the pool is shared now. Sending it twice does no harm.
-- KEYS[1] {async-processor:pool:<pool>}:pollers  zset  poller -> lease end, Unix seconds of this server; expires
-- KEYS[2] {async-processor:pool:<pool>}:in-use   hash  poller -> slots in use; expires
-- ARGV[1] poller   ARGV[2] slots in use   ARGV[3] lease, seconds
-- Returns {index among all pollers, from 0; number of pollers; slots in use by the others}.
-- include _run
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
probe('ZREM', KEYS[1], NO_NAME) -- first, so that leases can be renewed when memory is full
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))) do
  redis.call('ZREM', KEYS[1], ended)
  redis.call('HDEL', KEYS[2], ended)
end
redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[3])), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local life = math.ceil(tonumber(ARGV[3])) + 1
redis.call('EXPIRE', KEYS[1], life)
redis.call('EXPIRE', KEYS[2], life)

local place, count, elsewhere = 0, 0, 0
for _, poller in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  count = count + 1
  if poller < ARGV[1] then
    place = place + 1
  end
  if poller ~= ARGV[1] then
    elsewhere = elsewhere + (tonumber(redis.call('HGET', KEYS[2], poller) or '0') or 0)
  end
end
return {place, count, elsewhere}

-- hold_slot: take one of a tenant's slots under a lease, after freeing slots whose lease has ended.
-- Sending it twice holds one slot: a submission has at most one, which belongs to the last caller.
-- KEYS[1] <prefix><attribute>:<value>    string  slots in use, the reference's and ours; expires if unused
-- KEYS[2] {<KEYS[1]>}:held               zset    submission, score = lease end, Unix seconds of this server
-- KEYS[3] {<KEYS[1]>}:held-by            hash    submission -> owner token
-- ARGV[1] submission   ARGV[2] owner   ARGV[3] limit   ARGV[4] lease, seconds   ARGV[5] lifetime of the keys, seconds
-- Returns 1, or 0 if all slots are in use (then only slots of ended leases were freed).
-- include _run
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
probe('ZREM', KEYS[2], NO_NAME) -- first, so that leases can be renewed when memory is full
local used = tonumber(redis.call('GET', KEYS[1]) or '0') or 0

for _, ended in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now))) do
  redis.call('ZREM', KEYS[2], ended)
  redis.call('HDEL', KEYS[3], ended)
  used = used - 1
end
-- The counter may have expired or been reset; it must not be less than the number of slots in KEYS[2].
used = math.max(used, redis.call('ZCARD', KEYS[2]))

local is_held = redis.call('ZSCORE', KEYS[2], ARGV[1])
local may_go = is_held or used < tonumber(ARGV[3])
if may_go then
  if not is_held then
    used = used + 1
  end
  redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[4])), ARGV[1])
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
end
local life = math.ceil(tonumber(ARGV[5]))
if used > 0 then
  redis.call('SET', KEYS[1], used, 'EX', life)
else
  redis.call('DEL', KEYS[1])
end
redis.call('EXPIRE', KEYS[2], life)
redis.call('EXPIRE', KEYS[3], life)
return may_go and 1 or 0

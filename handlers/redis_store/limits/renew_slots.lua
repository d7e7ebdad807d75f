-- renew_slots: extend the leases of one tenant's slots. Sending it twice does no harm.
-- A slot that was freed meanwhile is taken again, even over the limit, because its request is in flight.
-- KEYS[1] <prefix><attribute>:<value>    string  slots in use, the reference's and ours; expires if unused
-- KEYS[2] {<KEYS[1]>}:held               zset    submission, score = lease end, Unix seconds of this server
-- KEYS[3] {<KEYS[1]>}:held-by            hash    submission -> owner token
-- ARGV[1] owner   ARGV[2] lease, seconds   ARGV[3] lifetime of the keys, seconds   ARGV[4..] submissions
-- Returns how many of these submissions this owner holds a slot for now; slots of other owners are not changed.
-- include _run
local clock = redis.call('TIME')
local lease_end = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000 + tonumber(ARGV[2]))
probe('ZREM', KEYS[2], NO_NAME) -- first, so that leases can be renewed when memory is full
local used = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
local ours = 0
for at = 4, #ARGV do
  local owner = redis.call('HGET', KEYS[3], ARGV[at])
  if not owner then
    used = used + 1
    redis.call('HSET', KEYS[3], ARGV[at], ARGV[1])
    owner = ARGV[1]
  end
  if owner == ARGV[1] then
    redis.call('ZADD', KEYS[2], lease_end, ARGV[at])
    ours = ours + 1
  end
end
if ours > 0 then
  local life = math.ceil(tonumber(ARGV[3]))
  redis.call('SET', KEYS[1], math.max(used, redis.call('ZCARD', KEYS[2])), 'EX', life)
  redis.call('EXPIRE', KEYS[2], life)
  redis.call('EXPIRE', KEYS[3], life)
end
return ours

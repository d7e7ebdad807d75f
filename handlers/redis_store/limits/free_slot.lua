-- free_slot: free a tenant's slot, if this owner still holds it. Sending it twice does no harm.
-- KEYS[1] <prefix><attribute>:<value>    string  slots in use, the reference's and ours; expires if unused
-- KEYS[2] {<KEYS[1]>}:held               zset    submission, score = lease end, Unix seconds
-- KEYS[3] {<KEYS[1]>}:held-by            hash    submission -> owner token
-- ARGV[1] submission   ARGV[2] owner   ARGV[3] lifetime of the counter, seconds
-- Returns 1, or 0 if this owner does not hold it (then nothing was changed).
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
local used = (tonumber(redis.call('GET', KEYS[1]) or '0') or 0) - 1
used = math.max(used, redis.call('ZCARD', KEYS[2]))
if used > 0 then
  redis.call('SET', KEYS[1], used, 'EX', math.ceil(tonumber(ARGV[3])))
else
  redis.call('DEL', KEYS[1])
end
return 1

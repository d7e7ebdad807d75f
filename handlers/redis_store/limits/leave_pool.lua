-- leave_pool: remove this poller from the pool. Sending it twice does no harm.
-- KEYS[1] {async-processor:pool:<pool>}:pollers  zset  poller -> lease end
-- KEYS[2] {async-processor:pool:<pool>}:in-use   hash  poller -> slots in use
-- ARGV[1] poller
-- Returns 1, or 0 if it was not a member.
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])

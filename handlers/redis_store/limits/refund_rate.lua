-- refund_rate: return the unit that a submission paid. Sending it twice does no harm.
-- KEYS[1] <prefix><attribute>:<value>    zset  one entry per unit, score = when it was paid, Unix nanoseconds
-- KEYS[2] {<KEYS[1]>}:paid               zset  submission, score = remembered until, Unix seconds
-- ARGV[1] submission
-- Returns 1, or 0 if it had not paid (then nothing was changed).
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])

-- refund_rate: return the unit that a submission took. Sending it twice does no harm.
-- KEYS[1] <prefix><attribute>:<value>    zset  one entry per unit, score = when it was taken, Unix nanoseconds
-- KEYS[2] {<KEYS[1]>}:paid               zset  submission, score = when it is forgotten, Unix seconds
-- ARGV[1] submission
-- Returns 1, or 0 if it has not taken one (then nothing was changed).
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])

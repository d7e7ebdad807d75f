-- pay_rate: take one unit of a sliding window, if one is free. Sending it twice takes one unit: a submission that has
-- taken one ("paid") may be sent.
-- KEYS[1] <prefix><attribute>:<value>    zset  one entry per unit, score = when it was taken, Unix nanoseconds of
--                                              this server; shared with the reference, whose entries count too
-- KEYS[2] {<KEYS[1]>}:paid               zset  submission, score = when it is forgotten, Unix seconds of this server
-- ARGV[1] submission   ARGV[2] limit   ARGV[3] window, seconds   ARGV[4] how long to remember it, seconds
-- Returns 1 if it may be sent, else 0; 1 if this call took a unit, else 0; seconds until a unit is free (as text).
-- include _bounded
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local window = tonumber(ARGV[3])

remove_old(KEYS[2], string.format('%.6f', now))
if (tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '0') or 0) > now then
  return { 1, 0, '0' }
end

local ended = string.format('%.0f', (now - window) * 1000000000)
remove_old(KEYS[1], ended)
local used = redis.call('ZCOUNT', KEYS[1], '(' .. ended, '+inf')
local limit = tonumber(ARGV[2])
if used >= limit then
  local next_free = redis.call('ZRANGE', KEYS[1], -limit, -limit, 'WITHSCORES')
  local wait = tonumber(next_free[2]) / 1000000000 + window - now
  return { 0, 0, string.format('%.6f', math.max(0, wait)) }
end

redis.call('ZADD', KEYS[1], string.format('%.0f', now * 1000000000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(1000, 2000 * window)))
redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[4])), ARGV[1])
-- The set expires with its last entry; a submission that is forgotten earlier must not shorten its life.
local ttl = math.max(redis.call('PTTL', KEYS[2]), math.ceil(tonumber(ARGV[4]) * 1000))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', ttl))
return { 1, 1, '0' }

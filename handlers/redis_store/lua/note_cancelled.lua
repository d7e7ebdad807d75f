-- note_cancelled: tell pollers what was cancelled: the last step of cancel.lua where its keys are in several slots (Redis
-- Cluster). Sending it twice does no harm.
-- KEYS[1] request-cancellations  zset  deadline, Unix seconds NUL id NUL token; score = when, Unix seconds of this
--                                      server; forgotten after an hour
-- ARGV[2n - 1] milliseconds until the deadline   ARGV[2n] id NUL token
-- Returns how many were told.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
for at = 1, #ARGV, 2 do
  local deadline = string.format('%.0f', now + tonumber(ARGV[at]) / 1000)
  redis.call('ZADD', KEYS[1], string.format('%.6f', now), deadline .. '\0' .. ARGV[at + 1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - 3600))
redis.call('EXPIRE', KEYS[1], 3600)
return #ARGV / 2

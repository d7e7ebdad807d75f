-- note_cancelled: add cancelled requests to the list that pollers read. In Redis Cluster it is the last step of a
-- cancellation, whose keys are in several slots. It also completes cancellations of producers that do not know the
-- list. Sending it twice does no harm.
-- KEYS[1] request-cancellations  zset  deadline (Unix seconds) NUL id NUL token; score = time of the cancellation, Unix
--                                      seconds of this server; removed after an hour
-- ARGV[1] 1: skip requests that are listed already, else 0
-- ARGV[2n] milliseconds until the deadline   ARGV[2n + 1] id NUL token
-- Returns how many were new.
-- include _bounded
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local added = 0
for at = 2, #ARGV, 2 do
  local entry = string.format('%.0f', now + tonumber(ARGV[at]) / 1000) .. '\0' .. ARGV[at + 1]
  local is_told = ARGV[1] == '1' and redis.call('ZSCORE', KEYS[1], entry)
  added = added + (is_told and 0 or redis.call('ZADD', KEYS[1], string.format('%.6f', now), entry))
end
remove_old(KEYS[1], string.format('%.6f', now - 3600))
redis.call('EXPIRE', KEYS[1], 3600)
return added

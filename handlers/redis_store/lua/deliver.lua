-- deliver: put what an outbox holds, or a producer queues, where it belongs, once. Sending it twice does no harm: what was
-- delivered in the last hour is known by its id.
-- KEYS[1] result list, queue or retry set  list or zset  results, newest first; or members with their scores
-- KEYS[2] {<KEYS[1]>}:delivered            zset          id, score = when, Unix seconds of this server; kept an hour
-- ARGV[1] list or zset   ARGV[2] seconds until KEYS[1] expires (empty: never)
-- ARGV[3n] id   ARGV[3n + 1] result or member   ARGV[3n + 2] score (of a zset)
-- Returns 1, or 0 when KEYS[1] is of another type (nothing was changed).
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local kind = redis.call('TYPE', KEYS[1])['ok']
if kind ~= 'none' and kind ~= ARGV[1] then
  return 0
end
for at = 3, #ARGV, 3 do
  if not redis.call('ZSCORE', KEYS[2], ARGV[at]) then
    if ARGV[1] == 'list' then
      redis.call('LPUSH', KEYS[1], ARGV[at + 1])
    else
      redis.call('ZADD', KEYS[1], ARGV[at + 2], ARGV[at + 1])
    end
  end
  redis.call('ZADD', KEYS[2], string.format('%.6f', now), ARGV[at]) -- again too: WAIT waits for writes only
end
if ARGV[2] ~= '' then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now - 3600))
redis.call('EXPIRE', KEYS[2], 3600)
return 1

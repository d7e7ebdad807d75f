-- cancel: mark live submissions as cancelled; the poller that holds or claims them answers them. Sending it twice does
-- no harm.
-- KEYS[1]       request-cancellations  zset    deadline (Unix seconds) NUL id NUL token; score = time of the
--                                              cancellation, Unix seconds of this server; removed after an hour
-- KEYS[2n]      request-active:<id>    string  token of the live submission; its TTL is read
-- KEYS[2n + 1]  request-cancel:<id>    string  token of the cancelled one; expires an hour after the deadline
-- ARGV[2n - 1]  the id   ARGV[2n]  token of the submission to cancel (empty: the live one)
-- Returns for each 1, or 0 if it is not live (finished, expired, unknown, another token; then nothing was changed).
-- include _bounded
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local answer = {}
for n = 1, #ARGV / 2 do
  local active, cancel, id, wanted = KEYS[2 * n], KEYS[2 * n + 1], ARGV[2 * n - 1], ARGV[2 * n]
  local token = text_of(active)
  if token and (wanted == '' or wanted == token) then
    local life_ms = math.max(redis.call('PTTL', active), 0)
    redis.call('SET', cancel, token, 'PX', string.format('%.0f', life_ms + 3600000))
    local deadline = string.format('%.0f', now + life_ms / 1000)
    redis.call('ZADD', KEYS[1], string.format('%.6f', now), deadline .. '\0' .. id .. '\0' .. token)
    answer[n] = 1
  else
    answer[n] = 0
  end
end
remove_old(KEYS[1], string.format('%.6f', now - 3600))
redis.call('EXPIRE', KEYS[1], 3600)
return answer

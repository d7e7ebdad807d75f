-- cancel: mark live submissions as cancelled; who holds or claims them answers them. Sending it twice does no harm.
-- KEYS[2n - 1]  request-active:<id>  string  token of the live submission; its remaining life is read
-- KEYS[2n]      request-cancel:<id>  string  token of the cancelled one; expires an hour after the deadline
-- ARGV[n]       the token that is meant, or empty: whichever is live
-- Returns for each 1, or 0 when it is not live (finished, expired, unknown, another token): nothing was changed.
local answer = {}
for n = 1, #KEYS / 2 do
  local active, cancel = KEYS[2 * n - 1], KEYS[2 * n]
  local token = redis.call('GET', active)
  if token and (ARGV[n] == '' or ARGV[n] == token) then
    local life_ms = math.max(redis.call('PTTL', active), 0) + 3600000
    redis.call('SET', cancel, token, 'PX', string.format('%.0f', life_ms))
    answer[n] = 1
  else
    answer[n] = 0
  end
end
return answer

-- return_token: return an unused token. Sending it twice returns two; take_token.lua caps the bucket afterwards.
-- KEYS[1] <control>:state  hash  tokens, last_ms
-- Returns 1, or 0 if the bucket has expired (then nothing was changed).
local tokens = tonumber(redis.call('HGET', KEYS[1], 'tokens') or '')
if not tokens then
  return 0
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens + 1))
return 1

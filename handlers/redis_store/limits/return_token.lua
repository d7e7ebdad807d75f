-- return_token: put a token back that was not used. Sending it twice returns two; the next taking caps the bucket.
-- KEYS[1] <control>:state  hash  tokens, last_ms
-- Returns 1, or 0 when there is no bucket any more (then nothing was changed).
local tokens = tonumber(redis.call('HGET', KEYS[1], 'tokens') or '')
if not tokens then
  return 0
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.17g', tokens + 1))
return 1

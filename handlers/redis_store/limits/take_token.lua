-- take_token: take one token from a bucket, whose rate an external controller leases. Sending it twice takes two.
-- KEYS[1] <control>        hash  api_version, pool_id, max_admission_rps, valid_until_unix_ms, decision_id
-- KEYS[2] <control>:state  hash  tokens, last_ms (Unix milliseconds of this server); the reference's format
-- ARGV[1] api version   ARGV[2] pool id   ARGV[3] burst, seconds of the rate   ARGV[4] 1: take, 0: only read the lease
-- Returns 1 if one was taken, else 0; 1 if the lease is valid, else 0; tokens per second and the seconds until a token
-- is available (both as text).
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local command = redis.call(
  'HMGET', KEYS[1], 'api_version', 'pool_id', 'max_admission_rps', 'valid_until_unix_ms', 'decision_id'
)
local rate, valid_until = tonumber(command[3] or ''), tonumber(command[4] or '')
local is_ours = command[1] == ARGV[1] and command[2] == ARGV[2] and command[5] and command[5] ~= ''
-- `rate - rate == 0` excludes the infinities and NaN.
if not (is_ours and rate and rate >= 0 and rate - rate == 0 and valid_until and valid_until > now) then
  return { 0, 0, '0', '0' }
end
local shown = string.format('%.17g', rate)
if rate == 0 or ARGV[4] ~= '1' then
  return { 0, 1, shown, '0' }
end

local most = math.max(1, rate * tonumber(ARGV[3]))
local bucket = redis.call('HMGET', KEYS[2], 'tokens', 'last_ms')
local tokens, last = tonumber(bucket[1] or ''), tonumber(bucket[2] or '')
local wall = now
if tokens and last then
  -- If the server's clock was set back, the same seconds must not refill the bucket twice.
  now = math.max(now, last)
  tokens = math.min(most, tokens + (now - last) / 1000 * rate)
else
  tokens = most
end
local is_taken = tokens >= 1
if is_taken then
  tokens = tokens - 1
end
redis.call('HSET', KEYS[2], 'tokens', string.format('%.17g', tokens), 'last_ms', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.max(1000, valid_until - wall + 1000)))
local wait = is_taken and 0 or (1 - tokens) / rate
return { is_taken and 1 or 0, 1, shown, string.format('%.6f', wait) }

-- ack_results: drop results that their reader has stored, and remember their claim keys for a while.
-- Sending it twice does no harm.
-- KEYS[1] <results>:result-claimed         hash  claim key -> result
-- KEYS[2] <results>:result-claim-owners    hash  claim key -> owner token
-- KEYS[3] <results>:result-claims-idx      zset  claim key, score = lease end, Unix milliseconds of this server
-- KEYS[4] <results>:result-ack-tombstones  zset  claim key, score = when it is forgotten, Unix milliseconds
-- ARGV[1] owner token   ARGV[2] how long to remember, milliseconds   ARGV[3..] claim keys
-- Returns for each claim key 1, 2 if it was acknowledged before, or 0 if the lease has ended or another owner holds it
-- (then nothing was changed, and the result is delivered again).
-- include _run
local clock = run('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local answer = {}
probe('ZREM', KEYS[3], NO_NAME) -- first: deletions are allowed when memory is full
probe('HDEL', KEYS[1], NO_NAME)
probe('HDEL', KEYS[2], NO_NAME)
for at = 3, #ARGV do
  local key = ARGV[at]
  local ends = run('ZSCORE', KEYS[3], key)
  if ends and tonumber(ends) > now and run('HGET', KEYS[2], key) == ARGV[1] then
    run('ZADD', KEYS[4], now + tonumber(ARGV[2]), key)
    run('HDEL', KEYS[1], key)
    run('HDEL', KEYS[2], key)
    run('ZREM', KEYS[3], key)
    answer[#answer + 1] = 1
  else
    local forgotten_at = run('ZSCORE', KEYS[4], key)
    answer[#answer + 1] = forgotten_at and tonumber(forgotten_at) > now and 2 or 0
  end
end
-- The expiry is only ever moved later, since another reader may use a longer time.
if (try('PTTL', KEYS[4]) or 0) < tonumber(ARGV[2]) then
  try('PEXPIRE', KEYS[4], ARGV[2])
end
return answer

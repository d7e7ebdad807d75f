-- nack: put requests into the retry set and drop their claims, each in one step, if the claim is still ours.
-- Sending it twice does no harm: for a minute the second tells what the first did, later it finds no claim.
-- KEYS[1] <queue>:claimed          hash    claim key -> member
-- KEYS[2] <queue>:claim-owners     hash    claim key -> owner token
-- KEYS[3] <queue>:claims-idx       zset    claim key, score = lease end
-- KEYS[4] <retry set>              zset    envelope, score = due time, Unix seconds of this server
-- KEYS[5] <queue>:settled:<batch>  string  1 or 0 for each claim of this batch; expires in a minute
-- ARGV four for each: claim key, owner token, retry member, delay in seconds
-- Returns for each 1, or 0 when the claim is not ours (nothing was changed).
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local settled = redis.call('GET', KEYS[5]) or ''
local has_effect = false
local answer = {}
for at = 1, #ARGV, 4 do
  local n = #answer + 1
  local key = ARGV[at]
  if string.sub(settled, n, n) == '1' then
    answer[n] = 1
  elseif redis.call('HGET', KEYS[2], key) == ARGV[at + 1] then
    redis.call('ZADD', KEYS[4], string.format('%.6f', now + tonumber(ARGV[at + 3])), ARGV[at + 2])
    redis.call('HDEL', KEYS[1], key)
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
    answer[n] = 1
  else
    answer[n] = 0
  end
  has_effect = has_effect or answer[n] == 1
end
if has_effect then
  redis.call('SET', KEYS[5], table.concat(answer), 'EX', 60) -- written again: WAIT waits for writes only
end
return answer

-- nack: put requests into the retry set and drop their claims, each in one step, if the claim is still ours.
-- Sending it twice does no harm: the second finds no claim and changes nothing.
-- KEYS[1] <queue>:claimed       hash  claim key -> member
-- KEYS[2] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[3] <queue>:claims-idx    zset  claim key, score = lease end
-- KEYS[4] <retry set>           zset  envelope, score = due time, Unix seconds of this server
-- ARGV four for each: claim key, owner token, retry member, delay in seconds
-- Returns for each 1, or 0 when the claim is not ours (nothing was changed).
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local answer = {}
for at = 1, #ARGV, 4 do
  local key = ARGV[at]
  local is_ours = redis.call('HGET', KEYS[2], key) == ARGV[at + 1]
  if is_ours then
    redis.call('ZADD', KEYS[4], string.format('%.6f', now + tonumber(ARGV[at + 3])), ARGV[at + 2])
    redis.call('HDEL', KEYS[1], key)
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
  end
  answer[#answer + 1] = is_ours and 1 or 0
end
return answer

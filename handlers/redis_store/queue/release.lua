-- release: give claims back to pending as they were, if they are still ours. Sending it twice does no harm.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end
-- ARGV three for each: claim key, owner token, score
-- Returns for each 1, or 0 when the claim is not ours (nothing was changed).
local answer = {}
for at = 1, #ARGV, 3 do
  local key = ARGV[at]
  local is_ours = redis.call('HGET', KEYS[3], key) == ARGV[at + 1]
  if is_ours then
    redis.call('ZADD', KEYS[1], ARGV[at + 2], redis.call('HGET', KEYS[2], key))
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[4], key)
  end
  answer[#answer + 1] = is_ours and 1 or 0
end
return answer

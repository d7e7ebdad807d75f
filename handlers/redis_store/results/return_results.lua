-- return_results: give leased results back at once, to the end of the list where the oldest are. Sending it twice
-- does no harm.
-- KEYS[1] <results>                      list  results, oldest at the right
-- KEYS[2] <results>:result-claimed       hash  claim key -> result
-- KEYS[3] <results>:result-claim-owners  hash  claim key -> owner token
-- KEYS[4] <results>:result-claims-idx    zset  claim key, score = lease end, Unix milliseconds of this server
-- ARGV[1] owner token   ARGV[2..] claim keys, oldest first
-- Returns how many went back; those of other owners stay where they are.
local count = 0
for at = #ARGV, 2, -1 do
  local key = ARGV[at]
  if redis.call('HGET', KEYS[3], key) == ARGV[1] then
    local result = redis.call('HGET', KEYS[2], key)
    if result then
      redis.call('RPUSH', KEYS[1], result)
      count = count + 1
    end
    redis.call('HDEL', KEYS[2], key)
    redis.call('HDEL', KEYS[3], key)
    redis.call('ZREM', KEYS[4], key)
  end
end
return count

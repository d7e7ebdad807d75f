-- recall_named: bring cancelled requests, named by the caller, to the front of their queue: recall.lua where the list of
-- cancellations is in another slot (Redis Cluster). Sending it twice does no harm.
-- KEYS[1] <queue>  zset  member, score = deadline + sequence
-- ARGV[3n - 2] claim key   ARGV[3n - 1] deadline, Unix seconds   ARGV[3n] sequence
-- Returns how many were brought.
-- include _member
-- include _claim_key
local brought = 0
for at = 1, #ARGV, 3 do
  local score = string.format('%.17g', tonumber(ARGV[at + 1]) + math.min(tonumber(ARGV[at + 2]), 2097151) / 2097152)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], score, score, 'LIMIT', 0, 64)) do
    if claim_key(member) == ARGV[at] then
      redis.call('ZADD', KEYS[1], 'XX', 0, member)
      brought = brought + 1
    end
  end
end
return brought

-- renew: extend leases that the owner still holds. Sending it twice does no harm.
-- KEYS[1] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[2] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- ARGV[1] lease, seconds   ARGV[2..] pairs: claim key, owner token
-- Returns for each 1, or 0 if the owner does not hold it (then nothing was changed).
-- include _run
local clock = run('TIME')
local lease_end = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000 + tonumber(ARGV[1]))
local answer = {}
probe('ZREM', KEYS[2], NO_NAME) -- first, so that leases can be renewed when memory is full
for at = 2, #ARGV, 2 do
  local is_ours = run('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1]
  if is_ours then
    run('ZADD', KEYS[2], lease_end, ARGV[at])
  end
  answer[#answer + 1] = is_ours and 1 or 0
end
return answer

-- renew_results: extend leases that the owner still holds. Sending it twice does no harm.
-- KEYS[1] <results>:result-claim-owners  hash  claim key -> owner token
-- KEYS[2] <results>:result-claims-idx    zset  claim key, score = lease end, Unix milliseconds of this server
-- ARGV[1] owner token   ARGV[2] lease, milliseconds   ARGV[3..] claim keys
-- Returns for each claim key 1, or 0 if the lease has ended or another owner holds it (then nothing was changed).
-- include _run
local clock = run('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local answer = {}
probe('ZREM', KEYS[2], NO_NAME) -- first: a full memory must not end a lease
for at = 3, #ARGV do
  local ends = run('ZSCORE', KEYS[2], ARGV[at])
  if ends and tonumber(ends) > now and run('HGET', KEYS[1], ARGV[at]) == ARGV[1] then
    run('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[at])
    answer[#answer + 1] = 1
  else
    answer[#answer + 1] = 0
  end
end
return answer

-- nack: put requests into the retry set and drop their claims, each in one step, if the owner still holds the claim.
-- Sending it twice does no harm: within a minute the second call returns the first's answer, later it finds no claim.
-- KEYS[1] <queue>:claimed          hash    claim key -> member
-- KEYS[2] <queue>:claim-owners     hash    claim key -> owner token
-- KEYS[3] <queue>:claims-idx       zset    claim key, score = lease end
-- KEYS[4] <retry set>              zset    envelope, score = due time, Unix seconds of this server
-- KEYS[5] <queue>:settled:<batch>  string  1 or 0 for each claim of this batch; expires in a minute
-- ARGV four for each: claim key, owner token, retry member, delay in seconds
-- Returns for each 1, 0 if the claim was lost, or the error text if nothing was changed.
-- include _run
-- include _counted_as
-- include _settle
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local answer = {}
begin_settling(KEYS[5])
for n = 1, #ARGV / 4 do
  local key, owner, member, delay = unpack(ARGV, 4 * n - 3, 4 * n)
  answer[n] = settle(n, key, owner, nil, function()
    run('ZADD', KEYS[4], string.format('%.6f', now + tonumber(delay)), member)
  end)
end
end_settling(KEYS[5], answer)
return answer

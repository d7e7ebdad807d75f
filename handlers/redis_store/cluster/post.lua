-- post: drop claims and write a record of each to the queue's outbox, each in one step, if the owner still holds the
-- claim. This is the first half of an ack or nack in Redis Cluster, in the queue's own slot; deliver.lua is the second.
-- Sending it twice does no harm: within a minute the second call returns the first's answer, later it finds no claim.
-- KEYS[1] {<queue>}:claimed          hash    claim key -> member
-- KEYS[2] {<queue>}:claim-owners     hash    claim key -> owner token
-- KEYS[3] {<queue>}:claims-idx       zset    claim key, score = lease end
-- KEYS[4] {<queue>}:deaths           hash    claim key -> number of owners that crashed
-- KEYS[5] {<queue>}:dead             hash    dead letter id -> record
-- KEYS[6] {<queue>}:settled:<batch>  string  1 or 0 for each claim of this batch; expires in a minute
-- KEYS[7] {<queue>}:outbox           hash    owner token -> record to deliver
-- KEYS[8] {<queue>}:outbox-idx       zset    owner token, score = time of the record, Unix seconds of this server
-- ARGV[1] 1: an ack, so delete the counts of crashed owners; 0: a nack
-- ARGV[4n - 2] claim key   ARGV[4n - 1] owner token   ARGV[4n] record to deliver
-- ARGV[4n + 1] record for the dead letters (empty: none)
-- Returns for each 1, 0 if the claim was lost, or the error text if nothing was changed.
-- include _run
-- include _counted_as
-- include _settle
local clock = run('TIME')
local now = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000)
local answer = {}
begin_settling(KEYS[6])
probe('ZADD', KEYS[8], 'XX', 0, NO_NAME)
for n = 1, (#ARGV - 1) / 4 do
  local key, owner, record, dead = unpack(ARGV, 4 * n - 2, 4 * n + 1)
  answer[n] = settle(n, key, owner, ARGV[1] == '1' and KEYS[4] or nil, function()
    with_letter(redis.sha1hex(key .. owner), dead, function()
      run('HSET', KEYS[7], owner, record)
      run('ZADD', KEYS[8], now, owner)
    end)
  end)
end
end_settling(KEYS[6], answer)
return answer

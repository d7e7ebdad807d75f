-- post: drop claims and keep what is to be said of each in the queue's outbox, each in one step, if the claim is still
-- ours: the half of an ack or nack in Redis Cluster that the queue's own slot can do (deliver.lua is the other).
-- Sending it twice does no harm: for a minute the second tells what the first did, later it finds no claim.
-- KEYS[1] {<queue>}:claimed          hash    claim key -> member
-- KEYS[2] {<queue>}:claim-owners     hash    claim key -> owner token
-- KEYS[3] {<queue>}:claims-idx       zset    claim key, score = lease end
-- KEYS[4] {<queue>}:deaths           hash    claim key -> owners that died on it
-- KEYS[5] {<queue>}:dead             hash    dead letter id -> record
-- KEYS[6] {<queue>}:settled:<batch>  string  1 or 0 for each claim of this batch; expires in a minute
-- KEYS[7] {<queue>}:outbox           hash    owner token -> what is to be delivered
-- KEYS[8] {<queue>}:outbox-idx       zset    owner token, score = since when, Unix seconds of this server
-- ARGV[1] 1: final, so that deaths are forgotten, else 0
-- ARGV[4n - 2] claim key   ARGV[4n - 1] owner token   ARGV[4n] record to deliver
-- ARGV[4n + 1] record for the dead letters (empty: none)
-- Returns for each 1, or 0 when the claim is not ours (nothing was changed).
local clock = redis.call('TIME')
local now = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000)
local settled = redis.call('GET', KEYS[6]) or ''
local has_effect = false
local answer = {}
for at = 2, #ARGV, 4 do
  local n = #answer + 1
  local key, owner = ARGV[at], ARGV[at + 1]
  if string.sub(settled, n, n) == '1' then
    answer[n] = 1
  elseif redis.call('HGET', KEYS[2], key) == owner then
    redis.call('HSET', KEYS[7], owner, ARGV[at + 2])
    redis.call('ZADD', KEYS[8], now, owner)
    if ARGV[at + 3] ~= '' then
      redis.call('HSET', KEYS[5], redis.sha1hex(key .. owner), ARGV[at + 3])
    end
    redis.call('HDEL', KEYS[1], key)
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
    if ARGV[1] == '1' then
      redis.call('HDEL', KEYS[4], string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key) -- as reclaim counts
    end
    answer[n] = 1
  else
    answer[n] = 0
  end
  has_effect = has_effect or answer[n] == 1
end
if has_effect then
  redis.call('SET', KEYS[6], table.concat(answer), 'EX', 60) -- written again: WAIT waits for writes only
end
return answer

-- ack: record final results and drop their claims, each in one step, if the claim is still ours.
-- Sending it twice does no harm: for a minute the second tells what the first did, later it finds no claim.
-- KEYS[1] <queue>:claimed           hash    claim key -> member
-- KEYS[2] <queue>:claim-owners      hash    claim key -> owner token
-- KEYS[3] <queue>:claims-idx        zset    claim key, score = lease end
-- KEYS[4] <queue>:deaths            hash    claim key -> owners that died on it
-- KEYS[5] <queue>:dead              hash    dead letter id -> record
-- KEYS[6] <queue>:settled:<batch>   string  1 or 0 for each claim of this batch; expires in a minute
-- KEYS[4n + 3] result list          list    the n-th result goes to its head
-- KEYS[4n + 4] request-active:<id>  string  deleted if it holds the n-th request's token
-- KEYS[4n + 5] request-cancel:<id>  string  deleted if it holds the n-th request's token
-- KEYS[4n + 6] request-payload:…    string  deleted; or the result list again where there is none
-- ARGV seven for each: claim key, owner token, result (empty: none), seconds until the list expires (empty:
-- never), record for the dead letters (empty: none), request token (empty: none), 1 if a payload is stored apart
-- Returns for each 1, 0 when the claim is not ours (nothing was changed), -1 when the result list is no list.
local settled = redis.call('GET', KEYS[6]) or ''
local has_effect = false
local answer, marks = {}, {}
for n = 1, #ARGV / 7 do
  local at = 7 * (n - 1)
  local key, owner, result = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local list = KEYS[4 * n + 3]
  local is_settled = string.sub(settled, n, n) == '1'
  local effect = is_settled and 1 or 0
  if not is_settled and redis.call('HGET', KEYS[2], key) == owner then
    effect = 1
    if result ~= '' then
      local pushed = redis.pcall('LPUSH', list, result)
      if type(pushed) == 'table' and pushed.err then
        if not string.find(pushed.err, 'WRONGTYPE', 1, true) then
          return redis.error_reply(pushed.err)
        end
        effect = -1
      elseif ARGV[at + 4] ~= '' then
        redis.call('EXPIRE', list, ARGV[at + 4])
      end
    end
  end
  if effect == 1 and not is_settled then
    if ARGV[at + 5] ~= '' then
      redis.call('HSET', KEYS[5], redis.sha1hex(key .. owner), ARGV[at + 5])
    end
    redis.call('HDEL', KEYS[1], key)
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[3], key)
    redis.call('HDEL', KEYS[4], string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key) -- as reclaim counts
    local token = ARGV[at + 6]
    if token ~= '' then
      for name = 4 * n + 4, 4 * n + 5 do
        if redis.call('GET', KEYS[name]) == token then
          redis.call('DEL', KEYS[name])
        end
      end
    end
    if ARGV[at + 7] == '1' then
      redis.call('DEL', KEYS[4 * n + 6])
    end
  end
  answer[n] = effect
  marks[n] = effect == 1 and '1' or '0'
  has_effect = has_effect or effect == 1
end
if has_effect then
  redis.call('SET', KEYS[6], table.concat(marks), 'EX', 60) -- written again: WAIT waits for writes only
end
return answer

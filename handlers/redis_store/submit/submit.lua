-- submit: queue a batch of requests, in order, and mark each as live, in one step.
-- A token ends with the request's sequence, so that look_up.lua finds the request without a scan.
-- For two minutes a repeated call returns the answer of the first call, even if its requests are finished by now. It
-- skips requests that are live under the same token, so a repeated call queues nothing twice.
-- With a window, a request is not queued again if its id (or its idempotency key, if it has a record) was submitted
-- before. The cancellation of an earlier submission is kept: that one may still be pending, under another token.
-- KEYS[1]       <queue>                        zset    member, score = deadline + min(seq, 2^21 - 1) / 2^21
-- KEYS[2]       request-sent:<digest>          string  answer of this call, JSON; expires in two minutes
-- KEYS[4n - 1]  request-seq:<queue>:<deadline> string  counter; expires an hour after the deadline
-- KEYS[4n]      request-active:<id>            string  token of the live submission; expires at the deadline
-- KEYS[4n + 1]  request-submitted:<id>         string  token, and the record of an idempotency key; set only with a
--                                                       window, and expires that long after the deadline
-- KEYS[4n + 2]  request-payload:<id>:<token>   string  offloaded payload; expires ten minutes after the deadline
-- ARGV[1]       1 if this call may have been sent before, else 0
-- ARGV[7n - 5]  deadline, Unix seconds   ARGV[7n - 4] token without its sequence
-- ARGV[7n - 3]  member up to the end of its token   ARGV[7n - 2] member after its enqueue_seq
-- ARGV[7n - 1]  payload to offload, or empty   ARGV[7n] window, seconds (0: none)
-- ARGV[7n + 1]  record of the idempotency key, or empty
-- Returns two values for each request: its seq (0: an earlier submission is returned), and its whole token, with the
-- record of that submission if it has one.
-- include _bounded
-- include _run
local MOST_ANSWER_BYTES = 4000000
local is_repeated = ARGV[1] == '1'
local told = is_repeated and text_of(KEYS[2], MOST_ANSWER_BYTES)
if told then
  redis.call('SET', KEYS[2], told, 'EX', 120) -- a repeated call writes too: WAIT waits for writes only
  return cjson.decode(told)
end
probe('ZADD', KEYS[1], 'XX', 0, NO_NAME) -- first: no record may be written for a request that cannot be queued
-- Fails before anything is written: a request that is marked as live must be queued.
local function check_right(command, key, value)
  if redis.acl_check_cmd and not redis.acl_check_cmd(command, key, value) then
    error({ err = 'NOPERM ' .. command .. ' ' .. key .. ': no permissions to run it' })
  end
end
check_right('SET', KEYS[2], '')
for at = 3, #KEYS, 4 do
  check_right('INCRBY', KEYS[at], 1)
  check_right('EXPIREAT', KEYS[at], 1)
  for other = at + 1, at + 3 do
    check_right('SET', KEYS[other], '')
  end
end
local is_counter_bounded = {}
local answer = {}
for n = 1, (#KEYS - 2) / 4 do
  local counter, active, submitted, payload_at = unpack(KEYS, 4 * n - 1, 4 * n + 2)
  local deadline, window, record = tonumber(ARGV[7 * n - 5]), tonumber(ARGV[7 * n]), ARGV[7 * n + 1]
  local token, head, tail, payload = unpack(ARGV, 7 * n - 4, 7 * n - 1)
  local first = is_repeated and text_of(active)
  local own_seq = first and string.sub(first, 1, #token + 1) == token .. '-' and string.sub(first, #token + 2)
  -- Without a key, the live submission is the newest of the id. With a key, the live one may be another submission.
  first = window > 0 and (record == '' and text_of(active) or text_of(submitted))
  if own_seq then
    answer[#answer + 1] = tonumber(own_seq)
    answer[#answer + 1] = token .. '-' .. own_seq
  elseif first then
    answer[#answer + 1] = 0
    answer[#answer + 1] = first
  else
    local seq = redis.call('INCR', counter)
    if not is_counter_bounded[counter] then
      redis.call('EXPIREAT', counter, math.ceil(deadline) + 3600)
      is_counter_bounded[counter] = true
    end
    token = token .. '-' .. seq
    local ends_at_ms = string.format('%.0f', deadline * 1000)
    if payload ~= '' then
      redis.call('SET', payload_at, payload, 'PXAT', string.format('%.0f', (deadline + 600) * 1000))
    end
    redis.call('SET', active, token, 'PXAT', ends_at_ms)
    if window > 0 then
      redis.call('SET', submitted, token .. record, 'PXAT', string.format('%.0f', (deadline + window) * 1000))
    end
    local score = string.format('%.17g', deadline + math.min(seq, 2097151) / 2097152)
    redis.call('ZADD', KEYS[1], score, head .. seq .. '","enqueue_seq":' .. seq .. tail)
    answer[#answer + 1] = seq
    answer[#answer + 1] = token
  end
end
if #answer > 0 then
  redis.call('SET', KEYS[2], cjson.encode(answer), 'EX', 120)
  -- Wakes idle pollers. `try`, because a user without the right to publish may still queue.
  try('PUBLISH', '{async-processor}:wake', KEYS[1])
end
return answer

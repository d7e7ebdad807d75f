-- look_up: return the state of one submission. It changes nothing; its cost does not depend on the queue's length.
-- KEYS[1] request-active:<id>     string  token of the live submission; expires at the deadline
-- KEYS[2] request-cancel:<id>     string  token of a cancelled submission
-- KEYS[3] request-submitted:<id>  string  token of a submission with a window
-- KEYS[4] <queue>                 zset    member, score = deadline + min(seq, 2^21 - 1) / 2^21
-- KEYS[5] <queue>:claimed         hash    claim key -> member
-- ARGV[1] id   ARGV[2] token of the submission (empty: the live one)
-- Returns the state and the token. States: pending, claimed, retrying, queued (pending or retrying; its token has no
-- sequence, or too many members have its score), cancelling, finished (no longer live), unknown (never submitted, or
-- its records have expired).
-- include _bounded
-- include _is_pending
local token = text_of(KEYS[1])
if token and ARGV[2] ~= '' and ARGV[2] ~= token then
  return { 'finished', ARGV[2] }
end
if not token then
  local known = ARGV[2] ~= '' and ARGV[2] or text_of(KEYS[3])
  if known then
    return { 'finished', known }
  end
  return { 'unknown', '' }
end
if holds(KEYS[2], token) then
  return { 'cancelling', token }
end
if redis.call('HEXISTS', KEYS[5], ARGV[1] .. '\0' .. token) == 1 then
  return { 'claimed', token }
end
local seq = string.match(token, '%-(%d+)$')
if not seq then
  return { 'queued', token }
end
-- KEYS[1] expires at the deadline, so its expiry and the token's sequence give the score. Less than half a second
-- passes between the two readings, and deadlines are whole seconds, so rounding gives the deadline.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local deadline = math.floor(now + redis.call('PTTL', KEYS[1]) / 1000 + 0.5)
local score = string.format('%.17g', deadline + math.min(tonumber(seq), 2097151) / 2097152)
local states = { [0] = 'retrying', [1] = 'pending', [2] = 'queued' }
return { states[is_pending(KEYS[4], score, token)], token }

-- mark_submission: record this submission for its id or idempotency key, if none is recorded.
-- Sending it twice does no harm: the second call finds its own record.
-- KEYS[1] request-submitted:<id>  string  the whole submission until it is queued, then its token (and key record);
--                                         expires
-- ARGV[1] this submission, as `submissions.py` writes it   ARGV[2] when its record expires, Unix milliseconds
-- ARGV[3] a value that it may replace (empty: none)
-- Returns the recorded value: ARGV[1], or the earlier one.
-- include _bounded
local MOST_BYTES = 32000000 -- a whole request
local first = text_of(KEYS[1], MOST_BYTES)
if first and first ~= ARGV[3] then
  redis.call('SET', KEYS[1], first, 'KEEPTTL') -- written every time: WAIT waits for writes only
  return first
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return ARGV[1]

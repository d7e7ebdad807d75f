-- mark_submission: let this submission stand for its id, if none does. Sending it twice does no harm: it finds itself.
-- KEYS[1] request-submitted:<id>  string  token of what stands for the id, or all of it while it is being queued; expires
-- ARGV[1] this submission, as `cluster_windows` writes it   ARGV[2] until when it stands for the id, Unix milliseconds
-- ARGV[3] what it may take the place of (empty: nothing)
-- Returns what stands for the id now: ARGV[1], or the earlier one.
local first = redis.call('GET', KEYS[1])
if first and first ~= ARGV[3] then
  redis.call('SET', KEYS[1], first, 'KEEPTTL') -- again: WAIT waits for writes only
  return first
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return ARGV[1]

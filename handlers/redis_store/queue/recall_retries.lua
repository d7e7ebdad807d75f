-- recall_retries: move cancelled requests from one part of the retry set to their queues, where recall.lua claims them.
-- The members name their queues, so those keys are not declared. Sending it twice does no harm.
-- KEYS[1] <retry set>  zset  envelope, score = due time
-- ARGV[1] the queue of members that do not name one   ARGV[2] due time to start from (first call: -inf)
-- ARGV[3] members due at that time to skip (first call: 0)   ARGV[4] members per call   ARGV[5] bytes per call
-- ARGV[6..] claim keys that were cancelled
-- Returns the due time to continue with (empty: done), its members to skip, and the number of moved members.
-- include _run
-- include _remove_at
-- include _member
-- include _claim_key
-- include _queued_under
-- include _is_named
-- include _scan_named
-- include _requeue
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local brought = 0
probe_removal()
local most, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local low, passed = scan_named(ARGV[2], tonumber(ARGV[3]), most, most_bytes, 6, function(member, rank)
  local is_moved = requeue(member, rank, ARGV[1], now)
  brought = brought + (is_moved and 1 or 0)
  return is_moved
end)
return { low, passed, brought }

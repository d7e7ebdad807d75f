-- recall_retries: move cancelled requests from one part of the retry set to their queues, where recall.lua claims them.
-- The members name their queues, so those keys are not declared. Sending it twice does no harm.
-- KEYS[1] <retry set>  zset  envelope, score = due time
-- ARGV[1] the queue of members that do not name one   ARGV[2] cursor, first 0   ARGV[3] members per call
-- ARGV[4] bytes per call
-- ARGV[5..] claim keys that were cancelled
-- Returns the next cursor (0: done), and the number of moved members.
-- include _run
-- include _member
-- include _claim_key
-- include _queued_under
-- include _is_named
-- include _scan_named
-- include _requeue
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local brought = 0
probe('ZREM', KEYS[1], NO_NAME)
local cursor, found = scan_named(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), 5)
for _, member in ipairs(found) do
  brought = brought + (requeue(member, ARGV[1], now) and 1 or 0)
end
return { cursor, brought }

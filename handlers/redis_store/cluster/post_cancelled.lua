-- post_cancelled: move cancelled retries from one part of the retry set into its outbox (Redis Cluster). They are then
-- delivered to their queues, where recall.lua claims them. Sending it twice does no harm.
-- KEYS[1] <retry set>               zset  envelope, score = due time, Unix seconds of this server
-- KEYS[2] {<retry set>}:outbox      hash  id -> record to deliver
-- KEYS[3] {<retry set>}:outbox-idx  zset  id, score = time of the record, Unix seconds of this server
-- ARGV[1] random part of the ids   ARGV[2] the queue of members that do not name one
-- ARGV[3] due time to start from (first call: -inf)   ARGV[4] members due at that time to skip (first call: 0)
-- ARGV[5] members per call   ARGV[6] bytes per call   ARGV[7..] claim keys that were cancelled
-- Returns the due time to continue with (empty: done), its members to skip, then two values for each: id and record
-- (empty if it is large: the outbox has it).
-- include _run
-- include _remove_at
-- include _member
-- include _claim_key
-- include _queued_under
-- include _is_named
-- include _scan_named
-- include _post_retry
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
probe_posts()
local answer = { '', 0 }
local function move(member, rank)
  local id = ARGV[1] .. ':' .. #answer / 2
  answer[#answer + 1] = id
  answer[#answer + 1] = post_retry(member, rank, id, ARGV[2], now)
  return true
end
answer[1], answer[2] = scan_named(ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), 7, move)
return answer

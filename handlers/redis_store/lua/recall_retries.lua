-- recall_retries: bring cancelled requests out of the retry set to the front of their queues, a part of it at a time.
-- The queues are named in the members, so their keys are not declared. Sending it twice does no harm.
-- KEYS[1] <retry set>            zset  envelope, score = due time
-- KEYS[2] request-cancellations  zset  deadline NUL id NUL token; score = when, Unix seconds of this server
-- ARGV[1] since when   ARGV[2] cursor, first 0   ARGV[3] how many at a time   ARGV[4] the queue of members that name none
-- Returns this server's Unix seconds, the next cursor (0: done, or nothing was cancelled), and how many were brought.
-- include _member
-- include _claim_key
-- include _queued_under
-- include _cancellations
local clock = redis.call('TIME')
local now = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000)
local wanted = cancellations(KEYS[2], ARGV[1])
if not wanted then
  return { now, '0', 0 }
end
local brought = 0
local part = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
for at = 1, #part[2], 2 do
  local member = part[2][at]
  if wanted[claim_key(member)] then
    local queue = queued_under(member) or ARGV[4]
    local added = redis.pcall('ZADD', queue, 0, member)
    if type(added) ~= 'table' or not added.err then
      redis.call('ZREM', KEYS[1], member)
      brought = brought + 1
    end
  end
end
return { now, part[1], brought }

-- recall_retries: bring cancelled requests out of the retry set back to their queues, where they are recalled, a part of
-- the set at a time. The queues are named in the members, so their keys are not declared. Sending it twice does no harm.
-- KEYS[1] <retry set>  zset  envelope, score = due time
-- ARGV[1] the queue of members that name none   ARGV[2] cursor, first 0   ARGV[3] how many at a time
-- ARGV[4..] claim keys that were cancelled
-- Returns the next cursor (0: done), and how many were brought.
-- include _member
-- include _claim_key
-- include _queued_under
-- include _is_named
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local wanted, tokens = named(4)
local brought = 0
local part = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
for at = 1, #part[2], 2 do
  local member = part[2][at]
  if is_named(member, wanted, tokens) then
    local queue, score = queued_under(member)
    if not queue or queue == KEYS[1] or string.find(queue, 'claims%-idx$') then
      queue = ARGV[1] -- as promote.lua
    end
    local added = redis.pcall('ZADD', queue, string.format('%.17g', score or now), member)
    if type(added) ~= 'table' or not added.err then
      redis.call('ZREM', KEYS[1], member)
      brought = brought + 1
    end
  end
end
return { part[1], brought }

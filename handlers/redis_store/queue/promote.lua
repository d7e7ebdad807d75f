-- promote: move retries that are due back to their queues, with the score they had. Sending it twice does no harm.
-- The queues are named in the members, so their keys are not declared: not for Redis Cluster.
-- KEYS[1] <retry set>  zset  envelope, score = due time, Unix seconds of this server
-- ARGV[1] how many at most   ARGV[2] the queue of members that name none
-- Returns how many were moved.
-- include _member
-- include _queued_under
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now), 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  local queue, score = queued_under(member)
  if not queue or queue == KEYS[1] or string.find(queue, 'claims%-idx$') then
    queue = ARGV[2] -- it names none, or a sorted set of another kind, where nobody would find the member
  end
  local added = redis.pcall('ZADD', queue, string.format('%.17g', score or now), member)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'WRONGTYPE', 1, true) then
      return redis.error_reply(added.err)
    end
    -- It names a key that is no queue: the default queue's poller answers it.
    redis.call('ZADD', ARGV[2], string.format('%.17g', score or now), member)
  end
  redis.call('ZREM', KEYS[1], member)
end
return #due

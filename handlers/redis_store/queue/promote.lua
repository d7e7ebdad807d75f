-- promote: move due retries back to their queues, with the score they had. Sending it twice does no harm.
-- The members name their queues, so those keys are not declared, and it cannot be used in Redis Cluster.
-- KEYS[1] <retry set>  zset  envelope, score = due time, Unix seconds of this server
-- ARGV[1] maximum number of members   ARGV[2] the queue of members that do not name one
-- ARGV[3] maximum bytes of members; the first is moved whatever its size
-- Returns the number of moved members, and 1 if more are due, else 0.
-- include _run
-- include _remove_at
-- include _member
-- include _queued_under
-- include _requeue
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local moved, room = 0, tonumber(ARGV[3])
probe_removal()
for at = 1, tonumber(ARGV[1]) do
  if room <= 0 and at > 1 then
    break
  end
  local member, due = unpack(run('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES'))
  if not member or tonumber(due) > now then
    return { moved, 0 }
  end
  room = room - #member
  if room < 0 and at > 1 then
    break
  end
  if requeue(member, 0, ARGV[2], now) then
    moved = moved + 1
  else
    run('ZADD', KEYS[1], string.format('%.6f', now + 5), member) -- later, so that it does not block others
  end
end
return { moved, 1 }

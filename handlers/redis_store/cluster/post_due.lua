-- post_due: move retries that are due into the retry set's outbox, to be delivered to their queues (Redis Cluster).
-- Sending it twice moves more; the records of a lost reply are delivered when they are overdue (overdue_posts.lua).
-- KEYS[1] <retry set>               zset  envelope, score = due time, Unix seconds of this server
-- KEYS[2] {<retry set>}:outbox      hash  id -> record to deliver
-- KEYS[3] {<retry set>}:outbox-idx  zset  id, score = time of the record, Unix seconds of this server
-- ARGV[1] random part of the ids   ARGV[2] the queue of members that do not name one
-- ARGV[3] maximum number of members   ARGV[4] maximum bytes of members; the first is moved whatever its size
-- Returns two values for each: id and record (empty if it is large: the outbox has it).
-- include _run
-- include _remove_at
-- include _member
-- include _queued_under
-- include _post_retry
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local answer, room = {}, tonumber(ARGV[4])
probe_posts()
for at = 1, tonumber(ARGV[3]) do
  if room <= 0 and at > 1 then
    break
  end
  local member, due = unpack(run('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES'))
  room = room - (member and #member or 0)
  if not member or tonumber(due) > now or room < 0 and at > 1 then
    break
  end
  local id = ARGV[1] .. ':' .. at
  answer[#answer + 1] = id
  answer[#answer + 1] = post_retry(member, 0, id, ARGV[2], now)
end
return answer

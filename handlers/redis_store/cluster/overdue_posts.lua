-- overdue_posts: return overdue records of an outbox, left by a crashed poller, for the caller to deliver. Their time
-- is set to now, so that no other poller takes them meanwhile. Sending it twice does no harm: the second finds fewer.
-- KEYS[1] {<queue or retry set>}:outbox      hash  id -> record to deliver
-- KEYS[2] {<queue or retry set>}:outbox-idx  zset  id, score = time of the record, Unix seconds of this server
-- ARGV[1] age of an overdue record, seconds   ARGV[2] maximum number of records
-- ARGV[3] maximum bytes of records; the first is returned whatever its size
-- Returns two values for each: id and record.
-- include _run
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local since = string.format('%.6f', now - tonumber(ARGV[1]))
local answer, room = {}, tonumber(ARGV[3])
for _, id in ipairs(run('ZRANGEBYSCORE', KEYS[2], '-inf', since, 'LIMIT', 0, ARGV[2])) do
  if room <= 0 and #answer > 0 then
    break
  end
  local record = run('HGET', KEYS[1], id)
  room = room - (record and #record or 0)
  if room < 0 and #answer > 0 then
    break
  end
  if record then
    run('ZADD', KEYS[2], string.format('%.6f', now), id)
    answer[#answer + 1] = id
    answer[#answer + 1] = record
  else
    run('ZREM', KEYS[2], id)
  end
end
return answer

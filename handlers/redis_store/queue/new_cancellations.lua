-- new_cancellations: read entries of the list of cancellations in order of time. It changes nothing.
-- Clients write the list, and may write entries of any number and size. Entries are read one by one; one longer than
-- ARGV[6] is returned empty, so that no entry fills a poller's memory.
-- KEYS[1] request-cancellations  zset  deadline (Unix seconds) NUL id NUL token; score = time of the cancellation, Unix
--                                      seconds of this server
-- ARGV[1] lowest time   ARGV[2] entries of that time to skip   ARGV[3] highest time   ARGV[4] maximum number of entries
-- ARGV[5] maximum bytes; the first is read whatever its size   ARGV[6] longest entry
-- Returns two values for each: entry and time.
local low, latest, room = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[5])
local passed = math.min(tonumber(ARGV[2]), redis.call('ZCOUNT', KEYS[1], low, low)) -- some may have been removed
local rank = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. low) + passed
local answer = {}
for at = 1, tonumber(ARGV[4]) do
  local entry, score = unpack(redis.call('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES'))
  if not entry or tonumber(score) > latest or room <= 0 then
    break
  end
  rank, room = rank + 1, room - #entry
  answer[2 * at - 1] = #entry <= tonumber(ARGV[6]) and entry or ''
  answer[2 * at] = score
end
return answer

-- recall: bring cancelled requests to the front of their queue, where the next look answers them without a slot.
-- Found by the score that their producer gave them, so the queue's length does not matter. Sending it twice does no harm.
-- KEYS[1] <queue>                zset  member, score = deadline + sequence
-- KEYS[2] request-cancellations  zset  deadline NUL id NUL token; score = when, Unix seconds of this server
-- ARGV[1] since when, as this script has returned it
-- Returns this server's Unix seconds, and how many were brought.
-- include _member
-- include _claim_key
-- include _cancellations
local clock = redis.call('TIME')
local now = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000)
local brought = 0
for key, cancelled in pairs(cancellations(KEYS[2], ARGV[1]) or {}) do
  local seq = tonumber(string.match(cancelled[2], '%-(%d+)$')) or 0
  local score = string.format('%.17g', cancelled[1] + math.min(seq, 2097151) / 2097152)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], score, score, 'LIMIT', 0, 64)) do
    if claim_key(member) == key then
      redis.call('ZADD', KEYS[1], 'XX', 0, member)
      brought = brought + 1
    end
  end
end
return { now, brought }

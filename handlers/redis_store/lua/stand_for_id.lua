-- stand_for_id: may this submission run, or does another one stand for its id? Sending it twice does no harm.
-- KEYS[1] request-stands:<id>  string  what knows the submission, behind `!` once it is finished; expires
-- ARGV[1] what knows this submission   ARGV[2] until when it stands for the id, Unix milliseconds
-- Returns `runs`, or what the other one is: `live` or `finished`.
local first = redis.call('GET', KEYS[1])
if not first then
  redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
  return 'runs'
end
if first == ARGV[1] then
  return 'runs' -- its next attempt, or its next owner
end
return string.sub(first, 1, 1) == '!' and 'finished' or 'live'

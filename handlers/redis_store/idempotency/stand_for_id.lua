-- stand_for_id: may this submission run, or does another one stand for its id? Sending it twice does no harm.
-- KEYS[1] request-stands:<n>:<queue>:<id>  string  what knows the submission; behind `!` once it is finished, behind `!!` if it is
--                                      among the dead letters; expires
-- ARGV[1] what knows this submission   ARGV[2] until when it stands for the id, Unix milliseconds
-- Returns `runs`; `repeated` if it is finished itself; or what the other one is: `live` or `finished`.
local first = redis.call('GET', KEYS[1])
if not first or first == '!!' .. ARGV[1] then -- a dead letter that was queued again lives again
  redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
  return 'runs'
end
if first == ARGV[1] then
  return 'runs' -- its next attempt, or its next owner
end
if first == '!' .. ARGV[1] then
  return 'repeated'
end
return string.sub(first, 1, 1) == '!' and 'finished' or 'live'

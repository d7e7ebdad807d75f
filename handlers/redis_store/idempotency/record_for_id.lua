-- record_for_id: record this submission for its id, unless another is recorded. Sending it twice does no harm.
-- KEYS[1] request-stands:<n>:<queue>:<id>  string  name of the submission, with a prefix `!` once it is finished, or
--                                                  `!!` once it is dead-lettered; expires
-- ARGV[1] name of this submission   ARGV[2] when its record expires, Unix milliseconds
-- Returns `runs` if it may run; `repeated` if it is finished; or the state of the other submission: `live` or
-- `finished`.
local first = redis.call('GET', KEYS[1])
if not first or first == '!!' .. ARGV[1] then -- a requeued dead letter is live again
  redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
  return 'runs'
end
if first == ARGV[1] then
  return 'runs' -- a retry, or the next owner after a crash
end
if first == '!' .. ARGV[1] then
  return 'repeated'
end
return string.sub(first, 1, 1) == '!' and 'finished' or 'live'

-- finish_id_record: mark the submission of an id as finished; its record remains for a while.
-- Sending it twice does no harm: the second finds it finished.
-- KEYS[1] request-stands:<n>:<queue>:<id>  string  name of the submission, with a prefix `!` once it is finished, or
--                                                  `!!` once it is dead-lettered; expires
-- ARGV[1] name of this submission   ARGV[2] how long its record remains, seconds
-- ARGV[3] 1 if it is dead-lettered, else 0
-- Returns 1, or 0 if the record is another submission's or gone (nothing was changed).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], (ARGV[3] == '1' and '!!' or '!') .. ARGV[1], 'EX', ARGV[2])
return 1

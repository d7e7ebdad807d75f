-- finish_for_id: the submission that stands for its id is finished; it stands for a while longer.
-- Sending it twice does no harm: the second finds it finished.
-- KEYS[1] request-stands:<n>:<queue>:<id>  string  what knows the submission; behind `!` once it is finished, behind `!!` if it is
--                                      among the dead letters; expires
-- ARGV[1] what knows this submission   ARGV[2] how much longer it stands for the id, seconds
-- ARGV[3] 1 if it is among the dead letters, else 0
-- Returns 1, or 0 when another one stands for the id, or none (nothing was changed).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], (ARGV[3] == '1' and '!!' or '!') .. ARGV[1], 'EX', ARGV[2])
return 1

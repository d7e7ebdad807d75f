-- finish_delivery: record that a delivery was answered. Sending it twice does no harm.
-- KEYS[1] delivery:…  hash  owner, reference, previous; expires
-- ARGV[1] owner token   ARGV[2] reference   ARGV[3] how long to keep it, milliseconds
-- Returns 1, or 0 when another owner has it or it was answered otherwise (then nothing was changed).
-- A lease that ended without another owner is no obstacle: the answer is out, and worth to be known.
local record = redis.call('HMGET', KEYS[1], 'owner', 'reference')
if record[2] then
  return record[2] == ARGV[2] and 1 or 0
end
if record[1] and record[1] ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'reference', ARGV[2])
redis.pcall('HDEL', KEYS[1], 'owner', 'previous') -- behind it: the record is never without both
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1

-- finish_delivery: record that a delivery was answered. Sending it twice does no harm.
-- KEYS[1] delivery:…  hash  owner, reference, previous; expires
-- ARGV[1] owner token   ARGV[2] reference   ARGV[3] lifetime of the record, milliseconds
-- Returns 1, or 0 if another owner holds it or it has another answer (then nothing was changed).
-- If the lease has ended and no other owner has taken the delivery, it is recorded too, because the answer is
-- published.
local record = redis.call('HMGET', KEYS[1], 'owner', 'reference')
if record[2] then
  return record[2] == ARGV[2] and 1 or 0
end
if record[1] and record[1] ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'reference', ARGV[2])
-- Only after the reference is set, so that the record always has one of them.
redis.pcall('HDEL', KEYS[1], 'owner', 'previous')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1

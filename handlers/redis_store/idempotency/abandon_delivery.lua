-- abandon_delivery: release a delivery that was not answered, so that the next attempt starts at once.
-- Sending it twice does no harm.
-- KEYS[1] delivery:…  hash  owner, reference, previous; expires
-- ARGV[1] owner token   ARGV[2] trace span of this attempt, for the next one (empty: none)
-- ARGV[3] lifetime of the record, milliseconds
-- Returns 1, or 0 if this owner does not hold it or it was answered (then nothing was changed).
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'previous', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1

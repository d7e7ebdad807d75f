-- renew_delivery: extend an owner's lease. Sending it twice does no harm.
-- KEYS[1] delivery:…  hash  owner, reference, previous; expires
-- ARGV[1] owner token   ARGV[2] lease, milliseconds from now
-- Returns 1, or 0 if this owner does not hold it or it was answered (then nothing was changed).
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

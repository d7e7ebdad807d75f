-- abandon_delivery: let go of a delivery that was not answered, so that its next one starts at once.
-- Sending it twice does no harm.
-- KEYS[1] delivery:…  hash  owner, reference; expires
-- ARGV[1] owner token
-- Returns 1, or 0 when another owner has it, nobody does or it was answered (then nothing was changed).
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])

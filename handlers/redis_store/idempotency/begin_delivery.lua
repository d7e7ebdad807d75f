-- begin_delivery: take a delivery under a lease, unless another owner holds it or it was answered.
-- Sending it twice for one owner does no harm: the lease is renewed.
-- KEYS[1] delivery:…  hash  owner: token of the current owner | reference: identifies the answer |
--                           previous: trace span of the last abandoned attempt; expires
-- ARGV[1] owner token   ARGV[2] lease, milliseconds
-- Returns {0, previous or ''} if taken; {1, milliseconds left} if another owner holds it; {2, reference} if answered.
local record = redis.call('HMGET', KEYS[1], 'owner', 'reference', 'previous')
if record[2] then
  return { 2, record[2] }
end
if record[1] and record[1] ~= ARGV[1] then
  return { 1, redis.call('PTTL', KEYS[1]) }
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
local expires = redis.pcall('PEXPIRE', KEYS[1], ARGV[2])
if type(expires) == 'table' and expires.err then
  redis.call('DEL', KEYS[1]) -- a lease without an end would block the delivery indefinitely
  return expires
end
return { 0, record[3] or '' }

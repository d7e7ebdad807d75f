-- Included behind _same_submission by scripts that claim. Writes KEYS[2] to KEYS[4] of its script and reads KEYS[5], as
-- their headers say.
-- hold(key, member, owner, lease_end): claim a member for `owner`; returns the claim's key and the deaths on it.
local function hold(key, member, owner, lease_end)
  local deaths = redis.call('HGET', KEYS[5], key) or '0'
  if redis.call('HSETNX', KEYS[2], key, member) == 0 then
    -- A live claim has this name: of the same submission, which ends once, so its owner loses it; or one id was queued
    -- twice without a token.
    local owned_by, held = redis.call('HGET', KEYS[3], key), redis.call('HGET', KEYS[2], key)
    key = is_same_submission(owned_by, held, member) and key or key .. '\0' .. owner
    redis.call('HSET', KEYS[2], key, member)
  end
  redis.call('HSET', KEYS[3], key, owner)
  redis.call('ZADD', KEYS[4], lease_end, key)
  return key, deaths
end

-- Included behind _same_submission by scripts that claim. Writes KEYS[2] to KEYS[4] of its script and reads KEYS[5], as
-- their headers say.
-- hold(key, member, owner, lease_end): claim a member for `owner`; returns the claim's key and the deaths on it. Returns
-- nothing for a second copy of what one of us has claimed, which is dropped: that claim ends it, or brings it back.
local function hold(key, member, owner, lease_end)
  local deaths = redis.call('HGET', KEYS[5], key) or '0'
  if redis.call('HSETNX', KEYS[2], key, member) == 0 then
    -- A live claim has this name: of the same submission, which ends once, so another processor that only keeps it
    -- while a retry waits loses it; or one id was queued twice without a token.
    local owned_by, held = redis.call('HGET', KEYS[3], key), redis.call('HGET', KEYS[2], key)
    if not is_same_submission(owned_by, held, member) then
      key = key .. '\0' .. owner
    elseif is_ours(owned_by) then
      return nil
    end
    redis.call('HSET', KEYS[2], key, member)
  end
  redis.call('HSET', KEYS[3], key, owner)
  redis.call('ZADD', KEYS[4], lease_end, key)
  return key, deaths
end

-- Included after _run, _remove_at and _same_submission by scripts that claim. Writes KEYS[1] to KEYS[4] and reads
-- KEYS[5] of its script, which are described there.
-- probe_claims(): fails if a later command would fail.
-- hold(member, rank, owner, lease_end): claim the pending member of this rank for `owner`: write the claim, then remove
-- the member.
-- Returns the claim key and the number of owners that crashed while they held the claim. If one of our pollers has
-- already claimed the same request, hold removes the member and returns nothing: that poller will ack, nack or release
-- the claim.
local function probe_claims()
  probe('ZADD', KEYS[4], 'XX', 0, NO_NAME)
  probe('ZREM', KEYS[4], NO_NAME)
  probe_removal()
  probe('HDEL', KEYS[2], NO_NAME)
  probe('HDEL', KEYS[3], NO_NAME)
end

local function hold(member, rank, owner, lease_end)
  local key, is_digest = claim_key(member)
  local deaths = try('HGET', KEYS[5], counted_as(key)) or '0'
  local held = nil
  if run('HEXISTS', KEYS[2], key) == 1 then
    -- A claim with this key exists. It is taken over if it belongs to the same submission, since other processors keep
    -- their claim while a retry waits. Otherwise the id was queued twice without a token.
    local owned_by = run('HGET', KEYS[3], key)
    local is_held_by_us = is_ours(owned_by)
    if is_held_by_us and string.find(key, '%z') then
      remove_at(rank) -- the same id and token: the claimed member, which may be large, need not be read
      return nil
    end
    if not is_held_by_us or is_digest then -- else the id was queued twice without a token
      held = run('HGET', KEYS[2], key)
    end
    if not held or not is_same_submission(owned_by, held, member) then
      key, held = key .. '\0' .. owner, nil
    elseif is_held_by_us then
      remove_at(rank)
      return nil
    end
  end
  run('HSET', KEYS[2], key, member)
  local owned = redis.pcall('HSET', KEYS[3], key, owner)
  if type(owned) == 'table' and owned.err then
    if held then
      run('HSET', KEYS[2], key, held)
    else
      run('HDEL', KEYS[2], key)
    end
    run('HSET', KEYS[3], key, owner) -- fails again, with the error
  end
  run('ZADD', KEYS[4], lease_end, key)
  remove_at(rank)
  return key, deaths
end

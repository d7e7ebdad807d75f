-- Included after _run by scripts that return claims to pending. Writes KEYS[1] to KEYS[4] of its script, which are
-- described there.
-- probe_moves(): fails if a later command would fail. Moves are allowed when memory is full.
-- move_back(key, member, score): queue the claim's member, if it exists, then drop the claim.
local function probe_moves()
  probe('HDEL', KEYS[2], NO_NAME)
  probe('HDEL', KEYS[3], NO_NAME)
  probe('ZREM', KEYS[4], NO_NAME)
end

local function move_back(key, member, score)
  if member then
    run('ZADD', KEYS[1], score, member)
  end
  run('HDEL', KEYS[2], key)
  run('HDEL', KEYS[3], key)
  run('ZREM', KEYS[4], key)
end

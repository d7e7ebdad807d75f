-- Included after _run by scripts that return results: KEYS[1] to KEYS[4] of the script are the list, claimed, owners
-- and index.
-- probe_giving_back(): fails if a later command would fail. Moves are allowed when memory is full.
-- give_back(key, result): append the result, if it exists, to the list's end with the oldest, then drop its lease.
local function probe_giving_back()
  probe('ZREM', KEYS[4], NO_NAME)
  probe('HDEL', KEYS[2], NO_NAME)
  probe('HDEL', KEYS[3], NO_NAME)
end

local function give_back(key, result)
  if result then
    run('RPUSH', KEYS[1], result)
  end
  run('HDEL', KEYS[2], key)
  run('HDEL', KEYS[3], key)
  run('ZREM', KEYS[4], key)
end

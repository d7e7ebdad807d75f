-- Included after _run by scripts that remove members from the sorted set KEYS[1].
-- probe_removal(): fails if a removal would fail.
-- remove_at(rank): remove the member that has this rank now. ZREM would copy, hash and compare the member, which takes
-- longer than all else if it has ten megabytes.
local function probe_removal()
  probe('ZREMRANGEBYRANK', KEYS[1], 1, 0)
end

local function remove_at(rank)
  run('ZREMRANGEBYRANK', KEYS[1], rank, rank)
end

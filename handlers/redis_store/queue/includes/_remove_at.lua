-- Included after _run by scripts that remove members from the sorted set KEYS[1].
-- probe_removal(): fails if a removal would fail.
-- remove_at(rank): remove the member that has this rank now. ZREM would copy, hash and compare the member; for one of
-- ten megabytes, that takes longer than the rest of the script.
local function probe_removal()
  probe('ZREMRANGEBYRANK', KEYS[1], 1, 0)
end

local function remove_at(rank)
  run('ZREMRANGEBYRANK', KEYS[1], rank, rank)
end

-- Included after _run and _is_named by scripts that search for requests in a retry set, KEYS[1].
-- scan_named(low, passed, count, room, first, move): call move(member, rank) for the members whose claim keys are in
-- ARGV[first..], in order of due time, from the score `low` on, without the first `passed` members of that score.
-- `move` returns whether it has removed the member. Members are read one by one, since each may have ten megabytes, up
-- to `count` members and until they have `room` bytes. Returns the `low` and `passed` to continue with; `low` is empty
-- at the end.
local function scan_named(low, passed, count, room, first, move)
  local wanted, tokens = named(first)
  passed = math.min(passed, run('ZCOUNT', KEYS[1], low, low)) -- some may have been removed
  local rank = run('ZCOUNT', KEYS[1], '-inf', '(' .. low) + passed
  repeat
    local member, score = unpack(run('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES'))
    if not member then
      return '', 0
    end
    if score ~= low then
      low, passed = score, 0
    end
    local is_wanted, weight = is_named(member, wanted, tokens)
    if not (is_wanted and move(member, rank)) then
      rank, passed = rank + 1, passed + 1
    end
    count, room = count - weight, room - #member
  until count <= 0 or room <= 0
  return low, passed
end

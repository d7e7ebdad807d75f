-- release: return claims to pending unchanged, if the owner still holds them. Sending it twice does no harm.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end
-- ARGV[3n - 2] claim key   ARGV[3n - 1] owner token   ARGV[3n] score
-- Returns for each 1, or 0 if the claim was lost (nothing was changed).
-- include _run
-- include _move_back
local answer = {}
probe_moves()
for at = 1, #ARGV, 3 do
  local key = ARGV[at]
  local is_ours = run('HGET', KEYS[3], key) == ARGV[at + 1]
  if is_ours then
    move_back(key, run('HGET', KEYS[2], key), ARGV[at + 2])
  end
  answer[#answer + 1] = is_ours and 1 or 0
end
return answer

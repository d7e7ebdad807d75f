-- take_back: return claims of a lost reply to pending. Their poller never received them, so no crashed owner is
-- counted. Sending it twice does no harm.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end
-- ARGV[1] maximum bytes of members; the first is moved whatever its size
-- ARGV[2..] random parts of owner tokens
-- Returns how many were returned, and 1 if there may be more, else 0.
-- include _run
-- include _move_back
local room, returned = tonumber(ARGV[1]), 0
local is_lost = {}
for at = 2, #ARGV do
  is_lost[ARGV[at]] = true
end

probe_moves()
local claims = run('HGETALL', KEYS[3])
for at = 1, #claims, 2 do
  local key, prefix, score = claims[at], string.match(claims[at + 1], '^(%x+):%d+:s=([^:]+)$')
  if prefix and is_lost[prefix] then
    if room <= 0 and returned > 0 then
      return { returned, 1 }
    end
    local member = run('HGET', KEYS[2], key)
    room = room - (member and #member or 0)
    if room < 0 and returned > 0 then
      return { returned, 1 }
    end
    move_back(key, member, score)
    returned = returned + (member and 1 or 0)
  end
end
return { returned, 0 }

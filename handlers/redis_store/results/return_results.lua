-- return_results: return leased results to the list's end with the oldest. Sending it twice does no harm.
-- KEYS[1] <results>                      list  results, oldest at the right
-- KEYS[2] <results>:result-claimed       hash  claim key -> result
-- KEYS[3] <results>:result-claim-owners  hash  claim key -> owner token
-- KEYS[4] <results>:result-claims-idx    zset  claim key, score = lease end, Unix milliseconds of this server
-- ARGV[1] owner token   ARGV[2] maximum bytes of results; the last is returned whatever its size
-- ARGV[3..] claim keys, oldest first; processed from the last, so that the oldest result is at the very end
-- Returns how many were returned (results of other owners stay), and how many of the first claim keys are left to do.
-- include _run
-- include _give_back
local count, room = 0, tonumber(ARGV[2])
probe_giving_back()
for at = #ARGV, 3, -1 do
  local key = ARGV[at]
  if run('HGET', KEYS[3], key) == ARGV[1] then
    if room <= 0 and count > 0 then
      return { count, at - 2 }
    end
    local result = run('HGET', KEYS[2], key)
    room = room - (result and #result or 0)
    if room < 0 and count > 0 then
      return { count, at - 2 }
    end
    give_back(key, result)
    count = count + (result and 1 or 0)
  end
end
return { count, 0 }

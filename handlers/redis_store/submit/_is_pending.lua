-- Included by scripts that look for one submission in a queue. Writes nothing.
-- is_pending(queue, score, token): 1 if a member with that score contains the token, 0 if none does, 2 if there are too
-- many of them to read. Members are read one by one, since each may have ten megabytes.
local MOST_READ, MOST_READ_BYTES = 100, 2000000

local function is_pending(queue, score, token)
  local bytes = 0
  for at = 0, MOST_READ - 1 do
    local member = redis.call('ZRANGEBYSCORE', queue, score, score, 'LIMIT', at, 1)[1]
    if not member then
      return 0
    end
    if string.find(member, token, 1, true) then
      return 1
    end
    bytes = bytes + #member
    if bytes >= MOST_READ_BYTES then
      break
    end
  end
  return 2
end

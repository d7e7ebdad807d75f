-- Included by scripts that search for one submission in a queue. Writes nothing.
-- is_pending(queue, score, token): 1 if a member with that score contains the token, 0 if none does, 2 if there are too
-- many of them to read, or if the token is too long. Members are read one by one, since each may have ten megabytes.
-- Only the beginning of a member is searched, where producers write the token; a search in all of it may block the
-- server.
local MOST_READ, MOST_READ_BYTES, LONGEST_TOKEN, SEARCHED_BYTES = 100, 2000000, 1024, 65536

local function is_pending(queue, score, token)
  if #token > LONGEST_TOKEN then
    return 2
  end
  local bytes, is_cut = 0, false
  for at = 0, MOST_READ - 1 do
    local member = redis.call('ZRANGEBYSCORE', queue, score, score, 'LIMIT', at, 1)[1]
    if not member then
      return is_cut and 2 or 0
    end
    is_cut = is_cut or #member > SEARCHED_BYTES
    if string.find(string.sub(member, 1, SEARCHED_BYTES), token, 1, true) then
      return 1
    end
    bytes = bytes + #member
    if bytes >= MOST_READ_BYTES then
      break
    end
  end
  return 2
end

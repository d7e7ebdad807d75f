-- Included by scripts that look for cancelled requests. Reads one key and writes none.
-- cancellations(key, since): claim key -> { deadline, token } of what was cancelled from `since` on (Unix seconds of this
-- server), or nil where nothing was.
local function cancellations(key, since)
  local found = nil
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', key, since, '+inf')) do
    local deadline, id, token = string.match(entry, '^(%d+)%z(.-)%z(.+)$')
    if deadline then
      found = found or {}
      found[id .. '\0' .. token] = { tonumber(deadline), token }
    end
  end
  return found
end

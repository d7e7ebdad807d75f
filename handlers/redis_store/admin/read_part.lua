-- read_part: read a part of a key, bounded by entries and by bytes. Writes nothing; sending it twice does no harm.
-- KEYS[1] the zset, hash or list
-- ARGV[1] ZSCAN, HSCAN, ZRANGE or LRANGE  ARGV[2] cursor, or the first rank  ARGV[3] most entries
-- ARGV[4] most bytes (the entry that exceeds them is the last)  ARGV[5] longest entry that is returned
-- ARGV[6…] texts; only entries that contain one of them are returned (none given: all)
-- Returns {next cursor or rank, '0' at the end; entries read; bytes read; {name, value or score, bytes of both; …}}.
-- An entry longer than ARGV[5] is returned empty with its size, in a zset with its score too, in a hash with the first
-- 256 bytes of its name. Entries are read one by one: a page of several hundred entries of several megabytes could
-- exhaust the server's memory.
local kind, cursor = ARGV[1], ARGV[2]
local most, most_bytes, longest = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local entries, bytes, steps, rows = 0, 0, 0, {}

local function is_wanted(name, value)
  for n = 6, #ARGV do
    if string.find(name, ARGV[n], 1, true) or string.find(value, ARGV[n], 1, true) then
      return true
    end
  end
  return #ARGV < 6
end

local function next_entries()
  if kind == 'ZSCAN' or kind == 'HSCAN' then
    local page = redis.call(kind, KEYS[1], cursor, 'COUNT', 1)
    cursor = page[1]
    return page[2]
  end
  local found
  if kind == 'ZRANGE' then
    found = redis.call('ZRANGE', KEYS[1], cursor, cursor, 'WITHSCORES')
  else
    found = redis.call('LRANGE', KEYS[1], cursor, cursor)
  end
  cursor = #found > 0 and string.format('%.0f', tonumber(cursor) + 1) or '0'
  return found
end

repeat
  steps = steps + 1
  local found = next_entries()
  for n = 1, #found, 2 do
    local name, value = found[n], found[n + 1] or ''
    local size = #name + #value
    entries, bytes = entries + 1, bytes + size
    if is_wanted(name, value) then
      local is_shown = size <= longest
      rows[#rows + 1] = is_shown and name or (kind == 'HSCAN' and string.sub(name, 1, 256) or '')
      rows[#rows + 1] = (is_shown or kind == 'ZSCAN' or kind == 'ZRANGE') and value or ''
      rows[#rows + 1] = size
    end
  end
until cursor == '0' or entries >= most or bytes >= most_bytes or steps >= 2 * most
return {cursor, entries, bytes, rows}

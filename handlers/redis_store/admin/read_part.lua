-- read_part: read a part of a key, bounded by entries and by bytes. Writes nothing; sending it twice does no harm.
-- KEYS[1] the zset, hash or list
-- ARGV[1] HSCAN, ZRANGE, ZREVRANGE or LRANGE  ARGV[2] cursor, or the first rank  ARGV[3] most entries
-- ARGV[4] most bytes (the entry that exceeds them is the last)  ARGV[5] longest entry that is returned
-- ARGV[6…] texts; only entries that contain one of them are returned (none given: all)
-- Returns {next cursor or rank, '0' at the end; entries read; bytes read; {name, value or score, bytes of both; …}}.
-- An entry longer than ARGV[5] is returned empty with its size; an entry of a zset also has its score, one of a hash
-- the first 256 bytes of its name. Entries are read one by one, since each may have ten megabytes. In a hash, the names
-- of one bucket are read first, then their values. Servers that cannot return names alone (before Redis 7.4 and
-- Valkey 8) return a bucket with its values.
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

local function add(name, value)
  local size = #name + #value
  entries, bytes = entries + 1, bytes + size
  if is_wanted(name, value) then
    local is_shown, is_scored = size <= longest, kind == 'ZRANGE' or kind == 'ZREVRANGE'
    rows[#rows + 1] = is_shown and name or (kind == 'HSCAN' and string.sub(name, 1, 256) or '')
    rows[#rows + 1] = (is_shown or is_scored) and value or ''
    rows[#rows + 1] = size
  end
end

local function is_full()
  return entries >= most or bytes >= most_bytes
end

-- A cursor inside a bucket ends with the digest of the name that was read last. If that entry is removed, the entries
-- before it may be read again, as with the server's own cursors.
local function read_bucket()
  local bucket, last = string.match(cursor, '^(%d+):?(%x*)$')
  local page = redis.pcall('HSCAN', KEYS[1], bucket, 'COUNT', 1, 'NOVALUES')
  if page.err then
    page = redis.call('HSCAN', KEYS[1], bucket, 'COUNT', 1)
    cursor = page[1]
    for n = 1, #page[2], 2 do
      add(page[2][n], page[2][n + 1])
    end
    return
  end
  local names, first = page[2], 1
  for n = 1, last ~= '' and #names or 0 do
    first = redis.sha1hex(names[n]) == last and n + 1 or first
  end
  for n = first, #names do
    add(names[n], redis.call('HGET', KEYS[1], names[n]) or '')
    if is_full() and n < #names then
      cursor = bucket .. ':' .. redis.sha1hex(names[n])
      return
    end
  end
  cursor = page[1]
end

local function read_rank()
  local found
  if kind == 'LRANGE' then
    found = redis.call('LRANGE', KEYS[1], cursor, cursor)
  else
    local rank = kind == 'ZRANGE' and cursor or -1 - cursor
    found = redis.call('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES')
  end
  if #found > 0 then
    add(found[1], found[2] or '')
  end
  cursor = #found > 0 and string.format('%.0f', cursor + 1) or '0'
end

local read = kind == 'HSCAN' and read_bucket or read_rank
repeat
  steps = steps + 1
  read()
until cursor == '0' or is_full() or steps >= 2 * most
return {cursor, entries, bytes, rows}

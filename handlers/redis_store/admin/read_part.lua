-- read_part: read a part of a key, bounded by entries and by bytes. Writes nothing; sending it twice does no harm.
-- KEYS[1] the zset, hash or list
-- ARGV[1] HSCAN, ZRANGE, ZREVRANGE or LRANGE  ARGV[2] cursor, or the first rank  ARGV[3] maximum number of entries
-- ARGV[4] maximum bytes (the entry that exceeds them is the last)  ARGV[5] longest entry that is returned
-- ARGV[6…] texts; only entries that contain one of them are returned (none given: all)
-- Returns {next cursor or rank, '0' at the end; entries read; bytes read; {name, value or score, bytes of both; …}}.
-- An entry longer than ARGV[5] is returned empty with its size, in a zset with its score too, in a hash with the first
-- 256 bytes of its name. Entries are read one by one, since each may have ten megabytes: of a hash, first the names of
-- one bucket, then the values that are returned or searched. Servers that cannot return a bucket's names alone (before
-- Redis 7.4 and Valkey 8) return all names of a small hash, and a bucket of a large one with its values.
local kind, cursor = ARGV[1], ARGV[2]
local most, most_bytes, longest = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local entries, bytes, steps, rows = 0, 0, 0, {}
local SMALL_HASH = 1000

local function is_wanted(name, value)
  for n = 6, #ARGV do
    if string.find(name, ARGV[n], 1, true) or string.find(value, ARGV[n], 1, true) then
      return true
    end
  end
  return #ARGV < 6
end

local function add(name, value, size)
  entries, bytes = entries + 1, bytes + #name + #value
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

-- The names of a bucket, the next cursor, and whether these are all names of the hash; or nothing.
local function names_of(bucket)
  local page = redis.pcall('HSCAN', KEYS[1], bucket, 'COUNT', 1, 'NOVALUES')
  if not page.err then
    return page[2], page[1], false
  end
  local names = bucket == '0' and redis.call('HLEN', KEYS[1]) <= SMALL_HASH and redis.pcall('HKEYS', KEYS[1])
  if names and not names.err then -- an ACL of an earlier version refuses HKEYS
    return names, '0', true
  end
end

local function read_value(name)
  local size = #ARGV < 6 and redis.pcall('HSTRLEN', KEYS[1], name)
  if type(size) == 'number' and #name + size > longest then
    return add(name, '', #name + size)
  end
  local value = redis.call('HGET', KEYS[1], name) or ''
  add(name, value, #name + #value)
end

-- A cursor inside a bucket ends with its number of names and the digest of the name that was read last. Names are read
-- in the order of their digests, since the server's order changes while it resizes the hash. A bucket that has grown
-- may contain names of another one, so all of it is read again, as with the server's own cursors.
local function read_bucket()
  local bucket, count, last = string.match(cursor, '^(%d+):?(%d*):?(%x*)$')
  local names, after, are_all = names_of(bucket)
  if not names then
    local page = redis.call('HSCAN', KEYS[1], bucket, 'COUNT', 1)
    cursor = page[1]
    for n = 1, #page[2], 2 do
      add(page[2][n], page[2][n + 1], #page[2][n] + #page[2][n + 1])
    end
    return
  end
  local digests, by_digest = {}, {}
  for n, name in ipairs(names) do
    digests[n] = redis.sha1hex(name)
    by_digest[digests[n]] = name
  end
  table.sort(digests)
  if not are_all and #names > (tonumber(count) or 0) then
    last = ''
  end
  for n, digest in ipairs(digests) do
    if digest > last then
      read_value(by_digest[digest])
      if is_full() and n < #digests then
        cursor = string.format('%s:%d:%s', bucket, #digests, digest)
        return
      end
    end
  end
  cursor = after
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
    add(found[1], found[2] or '', #found[1] + #(found[2] or ''))
  end
  cursor = #found > 0 and string.format('%.0f', cursor + 1) or '0'
end

local read = kind == 'HSCAN' and read_bucket or read_rank
repeat
  steps = steps + 1
  read()
until cursor == '0' or is_full() or steps >= 2 * most
return {cursor, entries, bytes, rows}

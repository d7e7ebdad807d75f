-- Included by scripts that read or delete keys that clients may write: a string may have 500 MB, a sorted set millions
-- of entries.
-- text_of(key, most): the string, or false if it is missing or empty. A string longer than `most` bytes (default:
-- 64 KB) is cut after `most` + 1 bytes.
-- holds(key, text): whether the string is exactly `text`. It reads at most one byte more than `text` has.
-- remove_old(key, last): remove entries of a zset up to the score `last`: the lowest 1,000, and those with the same
-- score as the last of them. More remain for the next call, so that no call takes long.
local function text_of(key, most)
  local text = redis.call('GETRANGE', key, 0, most or 65536)
  return text ~= '' and text
end

local function holds(key, text)
  return text ~= '' and redis.call('GETRANGE', key, 0, #text) == text
end

local function remove_old(key, last)
  local over = redis.call('ZRANGEBYSCORE', key, '-inf', last, 'WITHSCORES', 'LIMIT', 1000, 1)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', over[2] or last)
end

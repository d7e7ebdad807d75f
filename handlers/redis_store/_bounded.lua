-- Included by scripts that read strings which clients may write: such a string may have 500 MB.
-- text_of(key, most): the string, or false if it is missing or empty. A string longer than `most` bytes (default:
-- 64 KB) is cut after `most` + 1 bytes.
-- holds(key, text): whether the string is exactly `text`. It reads at most one byte more than `text` has.
local function text_of(key, most)
  local text = redis.call('GETRANGE', key, 0, most or 65536)
  return text ~= '' and text
end

local function holds(key, text)
  return text ~= '' and redis.call('GETRANGE', key, 0, #text) == text
end

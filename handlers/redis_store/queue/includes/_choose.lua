-- Included after _run by scripts that claim. Reads KEYS[1] of its script and writes nothing.
-- choose(count, most_bytes, most_retries, position, latest):
-- up to `count` members of KEYS[1], each followed by its score and rank. They have at most `most_bytes` together, but
-- at least one is chosen. At most `most_retries` are retries while other requests wait. It begins at `position`, a
-- fraction of the queue: 0 is the head, 1 the end. From there it reads to the end, then back to the head. With
-- `latest`, members with a higher score are skipped.
-- It reads at most 1,000 members or 2 MB, so requests after more retries than that are not found.
local MOST_MEMBERS, MOST_BYTES = 1000, 2000000

-- The position before the value of a field, or nil. A pattern that searches all of the head takes ten times as long.
local function before_value(head, name, from)
  local _, to = string.find(head, name, from, true)
  return to and select(2, string.find(head, '^ ?: ?', to + 1))
end

-- Whether a member was attempted before, according to `internal`, which precedes `data` in members that processors
-- queue.
local function is_retry(member)
  local head = string.sub(member, 1, 4096)
  local internal = before_value(head, '"internal"', 1)
  local data = internal and before_value(head, '"data"', 1) or #head
  local count = internal and internal < data and before_value(head, '"retry_count"', internal)
  return count and count < data and string.find(head, '^[1-9]', count + 1) ~= nil
end

local function choose(count, most_bytes, most_retries, position, latest)
  local first = 0
  if position > 0 then
    first = math.max(0, math.floor((run('ZCARD', KEYS[1]) - count) * position))
  end
  local rank, step = first, 1
  local chosen, passed_over, retries, read, bytes = {}, {}, 0, 0, 0
  local function put(into, member, score, place)
    local last = #into
    into[last + 1], into[last + 2], into[last + 3] = member, score, place
  end
  local function take(member, score, place)
    most_bytes = most_bytes - #member
    if most_bytes >= 0 or #chosen == 0 then
      put(chosen, member, score, place)
    end
  end
  while #chosen < 3 * count and most_bytes > 0 and read < MOST_MEMBERS and bytes < MOST_BYTES do
    -- One by one: sizes are unknown, and a reply with many large members would block the server.
    local member, score = unpack(run('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES'))
    if not member and step == 1 and first > 0 then
      rank, step = first - 1, -1
      member, score = unpack(run('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES'))
    end
    if not member or latest and tonumber(score) > latest then
      break
    end
    local place = rank
    rank, read, bytes = rank + step, read + 1, bytes + #member
    if not is_retry(member) then
      take(member, score, place)
    elseif retries < most_retries then
      retries = retries + 1
      take(member, score, place)
    else
      put(passed_over, member, score, place)
    end
    if rank < 0 then
      break
    end
  end
  for at = 1, #passed_over, 3 do
    if #chosen < 3 * count and most_bytes > 0 then
      take(passed_over[at], passed_over[at + 1], passed_over[at + 2]) -- no other request waits
    end
  end
  return chosen
end

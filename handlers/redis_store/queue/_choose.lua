-- Included behind _run by scripts that claim. Reads KEYS[1] of its script and writes nothing.
-- choose(count, most_bytes, most_retries, position, latest): up to `count` members of KEYS[1], each followed by its score, lowest
-- score first; at most `most_bytes` of them, but at least one. Of these at most `most_retries` are retries while other
-- requests wait. `position` is where to begin: 0 at the queue's head, 1 at its end, in between by rank. With `latest`,
-- members with a higher score are left out.
-- It reads 1,000 members or 4 MB at most: requests behind more retries than that are not found.
local MOST_MEMBERS, MOST_BYTES = 1000, 4000000

-- Whether a member was tried before: `internal` says so, which stands before `data` in what processors queue.
local function is_retry(member)
  local head = string.sub(member, 1, 4096)
  local data = string.find(head, '"data"%s*:')
  local internal = string.find(head, '"internal"%s*:')
  if not internal or (data and data < internal) then
    return false
  end
  return string.find(data and string.sub(head, 1, data) or head, '"retry_count"%s*:%s*[1-9]') ~= nil
end

local function choose(count, most_bytes, most_retries, position, latest)
  local first = 0
  if position > 0 then
    first = math.max(0, math.floor((run('ZCARD', KEYS[1]) - count) * position))
  end
  local chosen, passed_over, retries, read, bytes = {}, {}, 0, 0, 0
  local function take(member, score)
    most_bytes = most_bytes - #member
    if most_bytes >= 0 or #chosen == 0 then
      chosen[#chosen + 1] = member
      chosen[#chosen + 1] = score
    end
  end
  while #chosen < 2 * count and most_bytes > 0 and read < MOST_MEMBERS and bytes < MOST_BYTES do
    -- A few at first: how large they are is not known, and all of one reply is held at a time.
    local some_more = read == 0 and 8 or math.max(1, math.floor(read * 1000000 / bytes))
    local last = first + math.min(some_more, count) - 1
    local some = run('ZRANGE', KEYS[1], first, last, 'WITHSCORES')
    for at = 1, #some, 2 do
      if latest and tonumber(some[at + 1]) > latest then
        return chosen
      end
      local is_passed_over = is_retry(some[at])
      if is_passed_over and retries < most_retries then
        is_passed_over, retries = false, retries + 1
      end
      if is_passed_over then
        passed_over[#passed_over + 1] = some[at]
        passed_over[#passed_over + 1] = some[at + 1]
      elseif #chosen < 2 * count then
        take(some[at], some[at + 1])
      end
      bytes = bytes + #some[at]
    end
    if #some == 0 then
      break
    end
    first, read = first + #some / 2, read + #some / 2
  end
  for at = 1, #passed_over, 2 do
    if #chosen < 2 * count and most_bytes > 0 then
      take(passed_over[at], passed_over[at + 1]) -- nothing else waits
    end
  end
  return chosen
end

-- Included after _run and _counted_as by scripts that ack or nack: KEYS[1] to KEYS[3] of the script are claims, owners
-- and index.
-- begin_settling(memory): fails if a later command would fail; reads the outcomes of an earlier call with the same
-- batch. `memory` is the key of those outcomes, <queue>:settled:<batch>.
-- settle(n, key, owner, deaths, write): if the owner still holds the n-th claim, call `write`, then drop the claim and
-- its count of crashed owners in the hash `deaths` (nil: keep the count). Returns 1, 0 if the claim was lost, or the
-- error text if `write` failed (then the claim is unchanged).
-- with_letter(letter, dead, write): write the dead letter `dead` (empty: none) to KEYS[5], call `write`, and remove the
-- dead letter again if that fails.
-- end_settling(memory, answer): store the outcomes under the key `memory` for a minute.
local done_before = ''

local function begin_settling(memory)
  done_before = try('GET', memory) or ''
  probe('SET', memory, done_before, 'XX', 'EX', 60)
  probe('HDEL', KEYS[1], NO_NAME)
  probe('HDEL', KEYS[2], NO_NAME)
  probe('ZREM', KEYS[3], NO_NAME)
end

local function settle(n, key, owner, deaths, write)
  if string.sub(done_before, n, n) == '1' then
    return 1
  end
  if run('HGET', KEYS[2], key) ~= owner then
    return 0
  end
  local is_written, failure = pcall(write)
  if not is_written then
    return error_text(failure)
  end
  run('HDEL', KEYS[1], key)
  run('HDEL', KEYS[2], key)
  run('ZREM', KEYS[3], key)
  if deaths then
    try('HDEL', deaths, counted_as(key))
  end
  return 1
end

local function with_letter(letter, dead, write)
  if dead ~= '' then
    run('HSET', KEYS[5], letter, dead)
  end
  local is_written, failure = pcall(write)
  if not is_written then
    try('HDEL', KEYS[5], dead ~= '' and letter or NO_NAME)
    error({ err = error_text(failure) })
  end
end

local function end_settling(memory, answer)
  local marks, has_effect = {}, false
  for n, effect in ipairs(answer) do
    marks[n] = effect == 1 and '1' or '0'
    has_effect = has_effect or effect == 1
  end
  if has_effect then
    run('SET', memory, table.concat(marks), 'EX', 60) -- written every time: WAIT waits for writes only
  end
end

-- Included behind _run and _counted_as by scripts that end claims: KEYS[1] to KEYS[3] of theirs are claims, owners and
-- index, as their headers say.
-- begin_settling(memory): fails where settling would fail halfway; reads what the same batch did before.
-- settle(n, key, owner, deaths, write): the n-th claim, if it is still the owner's: `write`, then drop the claim and what
-- the key `deaths` counts of it (nil: nothing). Returns 1, 0 when the claim is not the owner's, or the error that kept
-- the claim as it was.
-- with_letter(letter, dead, write): keep the record `dead` (empty: none) in KEYS[5], if `write` succeeds too.
-- end_settling(memory, answer): remembers for a minute what was done.
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
    run('SET', memory, table.concat(marks), 'EX', 60) -- written again: WAIT waits for writes only
  end
end

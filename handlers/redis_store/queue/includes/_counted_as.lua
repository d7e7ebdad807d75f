-- Included by scripts that count deaths or delete the counts. Reads no key and writes none.
-- counted_as(key): the name under which deaths are counted: a claim with an appended owner token counts for its id.
local function counted_as(key)
  return string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key
end

-- Included by scripts that count deaths, or forget them. Reads no key and writes none.
-- counted_as(key): the name under which deaths are counted: a claim beside another one of its name counts with it.
local function counted_as(key)
  return string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key
end

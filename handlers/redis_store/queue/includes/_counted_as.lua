-- Included by scripts that count crashed owners or delete the counts. Reads no key and writes none.
-- counted_as(key): the field that counts crashed owners of a claim: its claim key without an appended owner token.
local function counted_as(key)
  return string.match(key, '^(.*)%z%x+:%d+:s=[^%z:]+$') or key
end

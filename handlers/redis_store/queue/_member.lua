-- Included by scripts that read members. Reads no key and writes none.
-- read_member(member, is_enough): the member as a table, or nil. Of a large one whose payload stands behind the rest
-- only that rest is decoded, if `is_enough` finds in it what the caller needs: a server that decodes half a megabyte
-- does nothing else meanwhile. What is cut off before "payload" and closed is JSON only if it was cut between two
-- fields, so a "payload" inside a text or a deeper object is never taken for the real one.
local function read_member(member, is_enough)
  local at = #member > 4096 and string.find(member, '"payload"', 1, true)
  local head = at and string.match(string.sub(member, 1, at - 1), '^(.*),%s*$')
  if head then
    for _, ending in ipairs({ '}', '}}' }) do
      local is_read, fields = pcall(cjson.decode, head .. ending)
      if is_read and is_enough(fields) then
        return fields
      end
    end
  end
  local is_read, fields = pcall(cjson.decode, member)
  return is_read and type(fields) == 'table' and fields or nil
end

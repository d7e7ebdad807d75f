-- Included after _run and _is_named by scripts that search some requests in a retry set, KEYS[1].
-- scan_named(cursor, count, room, first): search one part of the set for members whose claim keys are in ARGV[first..].
-- It scans about `count` members or `room` bytes. Returns the next cursor ('0': done) and the members found.
local function scan_named(cursor, count, room, first)
  local wanted, tokens = named(first)
  local found = {}
  repeat
    local part = run('ZSCAN', KEYS[1], cursor, 'COUNT', 1)
    cursor = part[1]
    for at = 1, #part[2], 2 do
      local member = part[2][at]
      count, room = count - 1, room - #member
      if is_named(member, wanted, tokens) then
        found[#found + 1] = member
      end
    end
  until cursor == '0' or count <= 0 or room <= 0
  return cursor, found
end

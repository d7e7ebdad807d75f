-- Included by scripts that read members. Reads no key and writes none.
-- read_member(member): the fields of a member as a table, or nil; and whether all of `internal` was read.
-- A small member is decoded. Of a larger one, only the first 4 KB are read, and of these at most 150 signs of syntax
-- (brackets, commas, colons, quotes). So the cost does not grow with the member's size: a claim reads up to 64 members,
-- and each sign costs about a microsecond. The result then has the fields of the member, of `internal` and of `data`,
-- without deeper objects and lists.
local SMALL, HEAD, MOST_SIGNS = 1024, 4096, 150

-- The position of the quote that closes the string opened at `at`, or nil; and the number of escapes in the string.
-- Plain searches take a hundredth of the time of a pattern.
local function text_end(text, at)
  local escapes = 0
  at = at + 1
  while escapes <= MOST_SIGNS do
    local quote, escape = string.find(text, '"', at, true), string.find(text, '\\', at, true)
    if not (quote and escape and escape < quote) then
      return quote, escapes
    end
    at, escapes = escape + 2, escapes + 1
  end
  return nil, escapes
end

local function value_of(json)
  local is_read, values = pcall(cjson.decode, '[' .. json .. ']')
  return is_read and values[1] or nil
end

local function read_head(text)
  local root, at, signs = {}, 1, 0
  local depth, opened, is_object, key = 0, {}, {}, {} -- opened[depth]: the table to fill, or false
  local is_internal_read = false
  local name -- a string that may be a field's name
  local function keep(value)
    if opened[depth] and key[depth] and is_object[depth] then
      opened[depth][key[depth]] = value
    end
    key[depth] = nil
  end
  while signs < MOST_SIGNS do
    local from = string.find(text, '%S', at)
    if not from then
      break
    end
    local sign = string.sub(text, from, from)
    signs, at = signs + 1, from + 1
    if sign == '"' then
      local to, escapes = text_end(text, from)
      signs = signs + escapes
      if not to then
        break
      end
      at = to + 1
      if opened[depth] then
        local value = escapes == 0 and string.sub(text, from + 1, to - 1) or value_of(string.sub(text, from, to))
        if key[depth] then
          keep(value)
        else
          name = value
        end
      end
    elseif sign == ':' then
      key[depth] = name
    elseif sign == '{' or sign == '[' then
      local is_known = key[1] == 'internal' or key[1] == 'data'
      local is_kept = sign == '{' and (depth == 0 or depth == 1 and opened[1] and is_known)
      local fields = is_kept and (depth == 0 and root or {})
      if depth > 0 then
        keep(is_kept and fields or {})
      end
      depth, name = depth + 1, nil
      opened[depth], is_object[depth], key[depth] = fields, sign == '{', nil
    elseif sign == ',' or sign == '}' or sign == ']' then
      name, key[depth] = nil, nil
      if sign ~= ',' then
        is_internal_read = is_internal_read or depth == 2 and opened[2] ~= nil and opened[2] == root['internal']
        depth = depth - 1
        if depth < 1 then
          break
        end
      end
    else
      local to = select(2, string.find(text, '^[%w.+-]+', from))
      if not to then
        break -- not JSON
      end
      at = to + 1
      if key[depth] and opened[depth] then
        keep(value_of(string.sub(text, from, to)))
      end
    end
  end
  return root, is_internal_read
end

local function read_member(member)
  if #member > SMALL then
    return read_head(string.sub(member, 1, HEAD))
  end
  local is_read, fields = pcall(cjson.decode, member)
  return is_read and type(fields) == 'table' and fields or nil, true
end

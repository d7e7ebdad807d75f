-- Included after _member by scripts that need the claim key of a request. Reads no key and writes none.
-- claim_key(member): id, or id NUL token. A digest if the id or token is not in the first 4 KB or contains a NUL, or if
-- the token has the form of an owner token, so that no request is mistaken for another. Then it also returns true.
local LONG = 16384 -- of a longer member, length and both ends are hashed: SHA-1 of all bytes would block the server

local function is_text(value)
  return type(value) == 'string' and value ~= ''
end

local function is_enveloped(fields)
  return type(fields['data']) == 'table' and (fields['internal'] ~= nil or fields['request_kind'] ~= nil)
end

local function digest(member)
  if #member <= LONG then
    return redis.sha1hex(member)
  end
  return redis.sha1hex(#member .. ':' .. string.sub(member, 1, LONG / 2) .. string.sub(member, -LONG / 2))
end

local function claim_key(member)
  local fields, is_internal_read = read_member(member)
  fields = fields or {}
  local token = ''
  if is_enveloped(fields) then
    if not is_internal_read and fields['internal'] ~= cjson.null then
      return digest(member), true -- its token may be after the first 4 KB
    end
    token = type(fields['internal']) == 'table' and fields['internal']['request_token']
    fields = fields['data']
  end
  local id = fields['id']
  if not is_text(id) or string.find(id, '%z') then
    return digest(member), true
  end
  if not is_text(token) then
    return id
  end
  if string.find(token, '%z') or string.find(token, '^%x+:%d+:s=[^:]+$') then
    return digest(member), true
  end
  return id .. '\0' .. token
end

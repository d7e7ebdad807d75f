-- Included behind _member by scripts that must know a request by its name. Reads no key and writes none.
-- claim_key(member): id, or id NUL token; the SHA-1 of a member whose id cannot be read.
local function is_text(value)
  return type(value) == 'string' and value ~= ''
end

local function is_enveloped(fields)
  return type(fields['data']) == 'table' and (fields['internal'] ~= nil or fields['request_kind'] ~= nil)
end

-- Whether the fields before the payload tell id and token; an envelope's may stand behind it.
local function is_enough(fields)
  if fields['internal'] == nil and fields['request_kind'] == nil then
    return is_text(fields['id'])
  end
  return is_enveloped(fields) and fields['internal'] ~= nil and is_text(fields['data']['id'])
end

local function claim_key(member)
  local fields = read_member(member, is_enough) or {}
  local token = ''
  if is_enveloped(fields) then
    token = type(fields['internal']) == 'table' and fields['internal']['request_token']
    fields = fields['data']
  end
  if not is_text(fields['id']) then
    return redis.sha1hex(member)
  end
  return is_text(token) and fields['id'] .. '\0' .. token or fields['id']
end

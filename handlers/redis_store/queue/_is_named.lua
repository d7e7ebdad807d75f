-- Included behind _member and _claim_key by scripts that look for some requests among many. Reads no key and writes none.
-- is_named(member, wanted, tokens): whether a member's claim key is in `wanted`; `tokens` are the tokens in these.
-- Most members are dismissed by their token, unread: decoding all of a long set would stop the server for everybody.
local function is_named(member, wanted, tokens)
  local may_be = #member > 4096 -- of a large one only what stands before its payload is decoded, which is cheaper
  if not may_be then
    for token in string.gmatch(member, '"request_token"%s*:%s*"(.-)"') do
      may_be = may_be or tokens[token] or string.find(token, '\\', 1, true)
    end
  end
  return may_be and wanted[claim_key(member)]
end

-- named(first): `wanted` and `tokens` of the claim keys in ARGV, from ARGV[first] on.
local function named(first)
  local wanted, tokens = {}, {}
  for at = first, #ARGV do
    wanted[ARGV[at]] = true
    tokens[string.match(ARGV[at], '%z(.+)$') or ''] = true
  end
  return wanted, tokens
end

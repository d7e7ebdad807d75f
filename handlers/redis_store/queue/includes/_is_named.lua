-- Included after _member and _claim_key by scripts that search for requests by claim key. Reads no key and writes none.
-- is_named(member, wanted, tokens): whether a member's claim key is in `wanted`, and for how many members it counts in
-- its caller's limit; `tokens` are the tokens of those keys. Most members are skipped by their token without decoding,
-- which takes four times as long.
local function is_named(member, wanted, tokens)
  for token in string.gmatch(string.sub(member, 1, HEAD), '"request_token"%s*:%s*"(.-)"') do
    if tokens[token] or string.find(token, '\\', 1, true) then
      local is_wanted = wanted[claim_key(member)]
      return is_wanted, is_wanted and 1 or 4
    end
  end
  return nil, 1
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

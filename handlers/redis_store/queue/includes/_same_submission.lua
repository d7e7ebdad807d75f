-- Included after _claim_key by scripts that find an existing claim with the same claim key. Reads no key and writes
-- none.
-- is_same_submission(owner, held, member): whether `member` belongs to the submission that `owner` claimed as `held`.
-- The reference keeps its claim on a request that it puts into the retry set, and takes the claim over when the request
-- returns. We must do the same, or the kept claim would expire and answer the request a second time.
-- The request token decides. Without a token: our pollers drop a claim when they retry, so an owner token of our form
-- means another submission of the id. A claim of another processor belongs to the same submission if only the retry
-- count has grown.
-- Of large members, the bytes from the payload on are compared.
local function is_equal(one, other)
  if type(one) ~= 'table' or type(other) ~= 'table' then
    return one == other
  end
  for name, value in pairs(one) do
    if not is_equal(value, other[name]) then
      return false
    end
  end
  for name in pairs(other) do
    if one[name] == nil then
      return false
    end
  end
  return true
end

-- The text from the first "payload" of a large member on, without the closing brackets. At most 64 of them are skipped,
-- because a member may end with ten megabytes of spaces.
local function payload_of(member)
  local from = string.find(string.sub(member, 1, HEAD), '"payload"', 1, true)
  local to, least = #member, #member - 64
  while to > least and string.find(member, '^[}%s]', to) do
    to = to - 1
  end
  return from and string.sub(member, from, to)
end

local function read_attempt(member)
  local fields = read_member(member)
  if not fields then
    return nil
  end
  local payload = #member > SMALL and (payload_of(member) or member) or nil
  if not is_enveloped(fields) then -- a bare body, which other processors wrap in an envelope for its retry
    return { data = fields, count = 0, payload = payload }
  end
  local internal = type(fields['internal']) == 'table' and fields['internal'] or {}
  return {
    data = fields['data'], token = internal['request_token'], count = tonumber(internal['retry_count']) or 0,
    payload = payload,
  }
end

local function is_ours(owner)
  return owner and string.find(owner, ':s=[^:]+$')
end

local function is_same_submission(owner, held, member)
  local before, after = read_attempt(held), read_attempt(member)
  if not before or not after then
    return false
  end
  if is_text(after.token) then
    return before.token == after.token and before.data['id'] == after.data['id']
  end
  return not is_ours(owner) and before.count < after.count
    and before.payload == after.payload and is_equal(before.data, after.data)
end

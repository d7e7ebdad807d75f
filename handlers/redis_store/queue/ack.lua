-- ack: record final results and drop their claims, each in one step, if the owner still holds the claim.
-- Sending it twice does no harm: within a minute the second call returns the first's answer, later it finds no claim.
-- KEYS[1] <queue>:claimed           hash    claim key -> member
-- KEYS[2] <queue>:claim-owners      hash    claim key -> owner token
-- KEYS[3] <queue>:claims-idx        zset    claim key, score = lease end
-- KEYS[4] <queue>:deaths            hash    claim key -> number of owners that crashed
-- KEYS[5] <queue>:dead              hash    dead letter id -> record
-- KEYS[6] <queue>:settled:<batch>   string  1 or 0 for each claim of this batch; expires in a minute
-- ARGV: ten for each claim. The key names among them are not in KEYS, so that a key that the ACL refuses fails only its
-- own claim.
-- ARGV[10n - 9] claim key   ARGV[10n - 8] owner token   ARGV[10n - 7] result (empty: none)
-- ARGV[10n - 6] result list, gets the result at its head   ARGV[10n - 5] seconds until the list expires (empty: never)
-- ARGV[10n - 4] record for the dead letters (empty: none)   ARGV[10n - 3] request token (empty: none)
-- ARGV[10n - 2] request-active:<id>   ARGV[10n - 1] request-cancel:<id>, both deleted if they hold that token
-- ARGV[10n] request-payload:…, deleted (empty: none)
-- Returns for each 1, 0 if the claim was lost, or the error text if nothing was changed.
-- include _run
-- include _bounded
-- include _counted_as
-- include _settle
local answer = {}
begin_settling(KEYS[6])
for n = 1, #ARGV / 10 do
  local key, owner, result, list, expire_seconds = unpack(ARGV, 10 * n - 9, 10 * n - 5)
  local dead, token, active, cancel, payload = unpack(ARGV, 10 * n - 4, 10 * n)
  answer[n] = settle(n, key, owner, KEYS[4], function()
    with_letter(redis.sha1hex(key .. owner), dead, function()
      if result ~= '' then
        run('LPUSH', list, result)
      end
    end)
  end)
  if answer[n] == 1 and string.sub(done_before, n, n) ~= '1' then
    if result ~= '' and expire_seconds ~= '' then
      try('EXPIRE', list, expire_seconds)
    end
    for _, name in ipairs(token == '' and {} or { active, cancel }) do
      if select(2, pcall(holds, name, token)) == true then
        try('DEL', name)
      end
    end
    if payload ~= '' then
      try('DEL', payload)
    end
  end
end
end_settling(KEYS[6], answer)
return answer

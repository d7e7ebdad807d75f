-- acknowledge_key: let an idempotency key expire after its window, because the result of its submission was
-- acknowledged.
-- Repeating it changes nothing: an expiry is only moved to an earlier time.
-- KEYS[1] request-submitted:<NUL><digest>  string  token, window in seconds and JSON of the key record; expires
-- ARGV[1] token of the result
-- Returns 1, or 0 if the record is another submission's, or expires earlier (then nothing was changed).
-- include _bounded
local token, window = string.match(text_of(KEYS[1]) or '', '^(%S+) (%d+) ')
if token ~= ARGV[1] or redis.call('PTTL', KEYS[1]) <= window * 1000 then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], window * 1000)

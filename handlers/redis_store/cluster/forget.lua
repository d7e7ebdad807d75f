-- forget: delete a key that still holds this token. Sending it twice does no harm.
-- KEYS[1] request-active:<id> or request-cancel:<id>  string  token of a submission
-- ARGV[1] the token
-- Returns 1, or 0 if it holds another token or is gone (then nothing was changed).
-- include _bounded
if not holds(KEYS[1], ARGV[1]) then
  return 0
end
return redis.call('DEL', KEYS[1])

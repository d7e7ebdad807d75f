-- confirm_submission: reduce an id's marker to the token, because the recorded submission is queued.
-- Sending it twice does no harm: the second finds the token.
-- KEYS[1] request-submitted:<id>  string  token of the recorded submission, or the whole submission until it is queued; expires
-- ARGV[1] the submission, as `windows.py` wrote it   ARGV[2] its token
-- Returns 1, or 0 if the marker has changed (then nothing was changed).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1

-- confirm_submission: reduce the marker of an id or idempotency key to its final form once the submission is queued.
-- Sending it twice does no harm: the second finds the final form.
-- KEYS[1] request-submitted:<id>  string  the whole submission until it is queued, then its token (and key record);
--                                         expires
-- ARGV[1] the submission, as `submissions.py` wrote it   ARGV[2] its token, followed by its key record if it has one
-- Returns 1, or 0 if the marker has changed (then nothing was changed).
-- include _bounded
if not holds(KEYS[1], ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1

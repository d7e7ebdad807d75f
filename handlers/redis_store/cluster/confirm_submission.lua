-- confirm_submission: what stands for an id is in its queue: of all that was kept of it, its token is left.
-- Sending it twice does no harm: the second finds the token.
-- KEYS[1] request-submitted:<id>  string  token of what stands for the id, or all of it while it is being queued; expires
-- ARGV[1] the submission, as `cluster_windows` wrote it   ARGV[2] its token
-- Returns 1, or 0 when something else stands for the id (then nothing was changed).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1

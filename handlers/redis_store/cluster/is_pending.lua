-- is_pending: check whether a submission is in its queue. In Redis Cluster it replaces that step of look_up.lua.
-- It changes nothing.
-- KEYS[1] <queue>  zset  member, score = deadline + min(seq, 2^21 - 1) / 2^21
-- ARGV[1] the score   ARGV[2] the submission's token
-- Returns 1, 0, or 2 if too many members have that score to read them all.
-- include _is_pending
return is_pending(KEYS[1], ARGV[1], ARGV[2])

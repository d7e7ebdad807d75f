-- is_pending: whether a queue holds one submission; the part of look_up for Redis Cluster. It changes nothing.
-- KEYS[1] <queue>  zset  member, score = deadline + min(seq, 2^21 - 1) / 2^21
-- ARGV[1] the score   ARGV[2] the submission's token
-- Returns 1, 0, or 2 if too much has that score to say.
-- include _is_pending
return is_pending(KEYS[1], ARGV[1], ARGV[2])

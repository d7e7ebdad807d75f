-- requeue_dead: put a dead letter back into its queue. Its count of crashed owners was deleted when it was
-- dead-lettered. Sending it twice does no harm: the second finds no dead letter.
-- KEYS[1] <queue>:dead  hash  dead letter id -> record
-- KEYS[2] <queue>       zset  member, score = deadline (+ sequence)
-- ARGV[1] dead letter id   ARGV[2] member   ARGV[3] score
-- Returns 1, or 0 if it does not exist (then nothing was changed).
-- include _run
probe('HDEL', KEYS[1], NO_NAME)
if run('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
run('ZADD', KEYS[2], ARGV[3], ARGV[2])
run('HDEL', KEYS[1], ARGV[1])
return 1

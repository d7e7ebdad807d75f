-- Included after _run, _remove_at, _member and _queued_under by scripts that send retries back to their queues. Writes
-- KEYS[1], the retry set, and the queues that members name.
-- requeue(member, rank, default_queue, now): queue a member again with the score that it had, then remove it from the
-- retry set, where it has this rank. Returns whether it was moved; it stays if its queue and the default queue refuse
-- it.
local function requeue(member, rank, default_queue, now)
  local queue, score = queued_under(member)
  score = string.format('%.17g', score or now)
  if not queue or queue == KEYS[1] or string.find(queue, 'claims%-idx$') then
    queue = default_queue -- it does not name a queue, or names another sorted set, where no poller would find it
  end
  local is_added, failure = pcall(run, 'ZADD', queue, score, member)
  if not is_added and queue ~= default_queue and string.find(error_text(failure), '^WRONGTYPE') then
    is_added = try('ZADD', default_queue, score, member) -- it names a key of another type; the default queue takes it
  end
  if is_added then
    remove_at(rank)
  end
  return is_added
end

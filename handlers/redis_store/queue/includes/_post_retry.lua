-- Included after _run, _remove_at, _member and _queued_under by scripts that send retries back to queues in other
-- slots. Writes KEYS[1] to KEYS[3] of its script, which are described there.
-- probe_posts(): fails if a later command of post_retry would fail.
-- post_retry(member, rank, id, default_queue, now): move the retry of this rank into the outbox and return its record.
-- Its score is the one that its producer gave it, else `now`.
local MOST_RETURNED = 1000000 -- more bytes would be copied twice more for the reply

local function probe_posts()
  probe_removal()
  probe('ZADD', KEYS[3], 'XX', 0, NO_NAME)
end

local function post_retry(member, rank, id, default_queue, now)
  local queue, own_score = queued_under(member)
  if not queue or queue == KEYS[1] or string.find(queue, 'claims%-idx$') or string.find(queue, ':delivered$')
    or string.find(queue, ':outbox%-idx$') then
    queue = default_queue -- it does not name a queue, or names another sorted set, where no poller would find it
  end
  local due = string.format('%.17g', own_score or now)
  local head = { kind = 'zset', key = queue, fallback = default_queue, score = due }
  local record = cjson.encode(head) .. '\n' .. member
  run('HSET', KEYS[2], id, record)
  run('ZADD', KEYS[3], string.format('%.6f', now), id)
  remove_at(rank)
  return #record <= MOST_RETURNED and record or ''
end

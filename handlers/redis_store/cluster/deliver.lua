-- deliver: write items of an outbox, or requests of a producer, to their target once. Sending it twice does no harm:
-- the ids of delivered items are kept for an hour, those of requests with a window until an hour after the window.
-- KEYS[1] result list, queue or retry set  list or zset  results, newest first; or members with their scores
-- KEYS[2] {<KEYS[1]>}:delivered            zset          id, score = delivery time or end of the window, Unix seconds
--                                                        of this server; kept an hour longer; ignored if of another
--                                                        type
-- ARGV[1] list or zset   ARGV[2] seconds until KEYS[1] expires (empty: never)
-- ARGV[3] idempotency window, seconds after the deadline in the score (empty: none)
-- ARGV[3n + 1] id   ARGV[3n + 2] result or member   ARGV[3n + 3] score (of a zset)
-- Returns 1, or 0 if KEYS[1] is of another type (then nothing was changed).
-- include _run
-- include _bounded
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local window = tonumber(ARGV[3])
local kind = run('TYPE', KEYS[1])['ok']
if kind ~= 'none' and kind ~= ARGV[1] then
  return 0
end
local last = now
for at = 4, #ARGV, 3 do
  if not try('ZSCORE', KEYS[2], ARGV[at]) then
    if ARGV[1] == 'list' then
      run('LPUSH', KEYS[1], ARGV[at + 1])
    else
      run('ZADD', KEYS[1], ARGV[at + 2], ARGV[at + 1])
    end
  end
  local known_until = window and math.max(now, math.floor(tonumber(ARGV[at + 2])) + window) or now
  try('ZADD', KEYS[2], string.format('%.6f', known_until), ARGV[at]) -- for duplicates too: WAIT waits for writes only
  last = math.max(last, known_until)
end
if ARGV[2] ~= '' then
  try('EXPIRE', KEYS[1], ARGV[2])
end
pcall(remove_old, KEYS[2], string.format('%.6f', now - 3600))
local life = math.ceil(last - now) + 3600
if (try('PTTL', KEYS[2]) or 0) < life * 1000 then
  try('EXPIRE', KEYS[2], string.format('%.0f', life))
end
return 1

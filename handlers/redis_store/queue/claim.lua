-- claim: take pending requests, lowest score first, under a lease, each completely or not at all.
-- Sending it twice takes more. If a reply was lost, take_back.lua returns its claims, or reclaim.lua when their lease
-- has ended.
-- KEYS[1] <queue>               zset  member, score = deadline (+ sequence)
-- KEYS[2] <queue>:claimed       hash  claim key -> member
-- KEYS[3] <queue>:claim-owners  hash  claim key -> owner token
-- KEYS[4] <queue>:claims-idx    zset  claim key, score = lease end, Unix seconds of this server
-- KEYS[5] <queue>:deaths        hash  claim key -> number of owners that crashed
-- ARGV[1] maximum number of requests   ARGV[2] lease, seconds   ARGV[3] random part of the owner tokens
-- ARGV[4] 1: only requests whose score (deadline) has passed, else 0
-- ARGV[5] 1: check whether they were cancelled (request-cancel:<id> holds their token; key not declared), else 0
-- ARGV[6] maximum bytes of members; the first is taken whatever its size
-- ARGV[7] maximum number of retries while other requests wait
-- ARGV[8] where to begin, as a fraction of the queue: 0 head, 1 end
-- Returns this server's Unix seconds, then for each claim: claim key, owner token, member, score, crashed owners, and 1
-- if it was cancelled, else 0.
-- include _run
-- include _remove_at
-- include _bounded
-- include _counted_as
-- include _member
-- include _claim_key
-- include _same_submission
-- include _hold
-- include _choose
local clock = run('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local lease_end = string.format('%.6f', now + tonumber(ARGV[2]))
local latest = ARGV[4] == '1' and now or nil
local chosen = choose(tonumber(ARGV[1]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), latest)
local answer = { string.format('%.6f', now) }

-- The rank that a chosen member has now: all those before it in `chosen` are removed.
local function rank_now(rank, place)
  local now_at = rank
  for at = 3, place, 3 do
    now_at = now_at - (chosen[at] < rank and 1 or 0)
  end
  return now_at
end

probe_claims()
for at = 1, #chosen, 3 do
  local member, score, rank = chosen[at], chosen[at + 1], chosen[at + 2]
  local owner = ARGV[3] .. ':' .. at .. ':s=' .. score
  local is_done, key, deaths = pcall(hold, member, rank_now(rank, at), owner, lease_end)
  if not is_done then
    if #answer == 1 then
      error({ err = error_text(key) })
    end
    break -- return the claims made so far
  end
  if key then
    local id, token = string.match(counted_as(key), '^(.-)%z(.+)$')
    local is_cancelled = id and ARGV[5] == '1' and select(2, pcall(holds, 'request-cancel:' .. id, token)) == true
    local place = #answer
    answer[place + 1] = key
    answer[place + 2] = owner
    answer[place + 3] = member
    answer[place + 4] = score
    answer[place + 5] = deaths
    answer[place + 6] = is_cancelled and '1' or '0'
  end
end
return answer

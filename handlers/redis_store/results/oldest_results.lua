-- oldest_results: read the oldest results of a list, up to a number and a size. It changes nothing.
-- KEYS[1] <results>  list  results, oldest at the right
-- ARGV[1] maximum number of results   ARGV[2] maximum bytes; the first is returned whatever its size
-- ARGV[3] number of results to skip
-- Returns the results, oldest first.
local limit, skipped = tonumber(ARGV[2]), tonumber(ARGV[3])
local answer, size = {}, 0
for n = 1, tonumber(ARGV[1]) do
  if n > 1 and size >= limit then
    break
  end
  local text = redis.call('LRANGE', KEYS[1], -n - skipped, -n - skipped)[1]
  size = size + (text and #text or 0)
  if not text or (n > 1 and size > limit) then
    break
  end
  answer[n] = text
end
return answer

-- newest_results: read the newest results of a list, up to a number and a size. It changes nothing.
-- KEYS[1] <results>  list  results, newest at the left
-- ARGV[1] maximum number of results   ARGV[2] maximum bytes
-- Returns 1 if it stopped because the next result exceeds ARGV[2], else 0; then the results, newest first.
local answer, room = { 0 }, tonumber(ARGV[2])
for at = 0, tonumber(ARGV[1]) - 1 do
  local text = redis.call('LRANGE', KEYS[1], at, at)[1]
  room = room - (text and #text or 0)
  if not text or room < 0 then
    answer[1] = text and 1 or 0
    break
  end
  answer[#answer + 1] = text
end
return answer

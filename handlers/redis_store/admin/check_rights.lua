-- check_rights: check whether this user may run a poller's commands on these keys. Writes nothing; sending it twice
-- does no harm. Servers before Redis 7 cannot check this.
-- KEYS[1..] keys of any type, one for each command
-- ARGV three for each: command, its second argument (empty: none), its third (empty: none)
-- Returns `<command> <key>` for each that is not allowed, or false if the server cannot check.
if not redis.acl_check_cmd then
  return false
end
local refused = {}
for n, key in ipairs(KEYS) do
  local command, second, third = ARGV[3 * n - 2], ARGV[3 * n - 1], ARGV[3 * n]
  local is_allowed
  if third ~= '' then
    is_allowed = redis.acl_check_cmd(command, key, second, third)
  elseif second ~= '' then
    is_allowed = redis.acl_check_cmd(command, key, second)
  else
    is_allowed = redis.acl_check_cmd(command, key)
  end
  if not is_allowed then
    refused[#refused + 1] = command .. ' ' .. key
  end
end
return refused

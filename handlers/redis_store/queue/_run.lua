-- Included by scripts that change more than one key: so that a script that fails leaves no request, result or dead
-- letter without a key that holds it. Scripts read first, then `probe`, then write the copy, and remove last.
-- run(command, key, ...): as redis.call; its error names the command and the key.
-- try(command, key, ...): the answer, or nil where the server refuses: for what a request can do without.
-- probe(command, key, ...): as `run`, with arguments that change nothing: fails where the same command later would. The
-- first probe decides what happens when memory is full: ZADD and SET are refused then, and with them the script;
-- ZREM and HDEL are not, and whatever follows them is allowed.
local NO_NAME = '\0nobody' -- what no member, claim key or field is

local function refused(answer, command, key)
  local kind, said = string.match(answer.err, '^%-?(%u+)%s(.*)$')
  said = string.gsub(said or answer.err, ' script: .*$', '')
  if string.find(said, 'ACL failure', 1, true) or string.find(said, 'The user executing the script', 1, true) then
    kind = 'NOPERM' -- which servers of Redis 7.0 call ERR
  end
  return { err = (kind or 'ERR') .. ' ' .. command .. ' ' .. key .. ': ' .. said }
end

local function run(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    error(refused(answer, command, key))
  end
  return answer
end

local function try(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    return nil
  end
  return answer
end

local probe = run

-- error_text(failure): of what pcall tells, which is a text or a table, as the server has it.
local function error_text(failure)
  return type(failure) == 'table' and failure.err or failure
end

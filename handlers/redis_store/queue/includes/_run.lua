-- Included by scripts that change more than one key. A script that fails must not lose a request, result or dead
-- letter. So each script first reads, then calls `probe`, then writes the copy, and removes the original last.
-- run(command, [key, ...]): as redis.call; its error names the command and the key.
-- try(command, key, ...): as redis.call, but nil if the server refuses the command; for changes that are not essential.
-- probe(command, key, ...): as `run`; called with arguments that change nothing, it fails if the command would fail
-- later. If memory is full, the first probe decides: ZADD and SET are refused, which fails the script; ZREM and HDEL
-- are allowed, and so are all commands after them.
local NO_NAME = '\0nobody' -- not the name of any member, claim key or field

local function refused(answer, command, key)
  local kind, said = string.match(answer.err, '^%-?(%u+)%s(.*)$')
  said = string.gsub(said or answer.err, ' script: .*$', '')
  if string.find(said, 'ACL failure', 1, true) or string.find(said, 'The user executing the script', 1, true) then
    kind = 'NOPERM' -- which servers of Redis 7.0 call ERR
  end
  return { err = (kind or 'ERR') .. ' ' .. command .. ' ' .. (key or '(no key)') .. ': ' .. said }
end

local function run(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    error(refused(answer, command, ...))
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

-- error_text(failure): the text of an error that pcall returned, which is a string or a table.
local function error_text(failure)
  return type(failure) == 'table' and failure.err or failure
end

-- Included after _member by scripts that queue a member again. Reads no key and writes none.
-- queued_under(member): the queue that the member names, and its score: `original_score`, or else deadline and
-- sequence. Each is nil if absent or invalid.
local function queued_under(member)
  local fields = read_member(member) or {}
  local internal = type(fields['internal']) == 'table' and fields['internal'] or {}
  local body = type(fields['data']) == 'table' and fields['data'] or fields
  local queue = internal['request_queue_name']
  local deadline, seq = tonumber(body['deadline']), tonumber(internal['enqueue_seq']) or 0
  local score = tonumber(internal['original_score']) or (deadline and deadline + math.min(seq, 2097151) / 2097152)
  if score ~= score then
    score = nil -- NaN is not a score; such a member must not block all members after it
  end
  return type(queue) == 'string' and queue ~= '' and queue or nil, score
end

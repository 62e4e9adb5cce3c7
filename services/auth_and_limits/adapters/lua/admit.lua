-- The whole decision about a call, all or nothing: ARGV[7] call, [8] run, [9] runner, [10] amount, [11] tokens,
-- [12] price book, [13] idempotency key, [14] digest of the body.
local hold = account .. ':h:' .. ARGV[7]
local known = redis.call('HMGET', hold, 's', 'run')
if known[1] then
  if known[2] ~= ARGV[8] or tonumber(known[1]) > FINISHED then
    return {ALREADY, now}
  end
  local answer = seen(REPEAT)
  answer[15] = fields_of(hold)
  return answer
end
local claim = account .. ':i:' .. ARGV[13]
if ARGV[13] ~= '' then
  local earlier = redis.call('HMGET', claim, 'call', 'body', 'posted')
  if earlier[1] then
    if earlier[2] ~= ARGV[14] then
      return {REUSED, now}
    end
    local answer = seen(EARLIER)
    answer[15], answer[16] = earlier[1], tonumber(earlier[3] or 0)
    return answer
  end
end

local amount, wanted = tonumber(ARGV[10]), tonumber(ARGV[11])
local function is_short(it, count)
  return count > it[1] or it[2] + (count - it[1]) * UNITS > 0
end
if amount > available or running >= tier[4] or is_short(requests, 1) or is_short(tokens, wanted)
    or (is_requests_throttled and is_short(key_requests, 1)) or (is_tokens_throttled and is_short(key_tokens, wanted)) then
  if was_changed then -- from here on it refills as the new limit says
    keep_buckets()
  end
  return seen(REFUSED)
end

take(requests, 1)
take(tokens, wanted)
if is_requests_throttled then
  take(key_requests, 1)
end
if is_tokens_throttled then
  take(key_tokens, wanted)
end
redis.call('HSET', account, 'held', tonumber(state[4] or 0) + amount, 'run', running + 1,
  'rl', requests[1], 'ro', requests[2], 'ra', requests[3], 'tl', tokens[1], 'to', tokens[2], 'ta', tokens[3])
if is_throttled then
  keep_of_key(of_key, key_requests, key_tokens)
end
redis.call('HSET', hold, 'run', ARGV[8], 'by', ARGV[9], 'key', ARGV[3], 's', OPEN, 'amt', ARGV[10], 'tok', ARGV[11],
  'book', ARGV[12], 'til', now + LEASE_US)
redis.call('ZADD', account .. ':l', now + LEASE_US, ARGV[7])
if is_throttled then
  redis.call('HSET', hold, 'thr', 1)
end
if ARGV[13] ~= '' then
  redis.call('HSET', hold, 'idem', ARGV[13], 'body', ARGV[14])
  redis.call('HSET', claim, 'call', ARGV[7], 'body', ARGV[14])
  redis.call('PEXPIRE', claim, CLAIM_MS)
end
return seen(DONE)

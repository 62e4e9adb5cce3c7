-- What an account may do now: ARGV[2] epoch, [3] key id, [4] tiers, [5] and [6] the key's own ceilings, empty for none.
local state = redis.call('HMGET', account, 'e', 'bal', 'paid', 'held', 'run', 'rl', 'ro', 'ra', 'tl', 'to', 'ta')
if state[1] ~= ARGV[2] then
  return {UNLOADED, now}
end
local available = tonumber(state[2] or 0) - tonumber(state[4] or 0)
local paid, running = tonumber(state[3] or 0), tonumber(state[5] or 0)
local tiers = cmsgpack.unpack(ARGV[4])
local tier = tiers[1]
for _, each in ipairs(tiers) do
  if each[1] > paid then
    break
  end
  tier = each
end
local requests, tokens = bucket(state, 6), bucket(state, 9)
local was_changed = settle(requests, tier[2])
was_changed = settle(tokens, tier[3]) or was_changed

local of_key, key_requests, key_tokens, is_requests_throttled, is_tokens_throttled
if ARGV[5] ~= '' or ARGV[6] ~= '' then
  of_key = account .. ':k:' .. ARGV[3]
  local fields = redis.call('HMGET', of_key, 'rl', 'ro', 'ra', 'tl', 'to', 'ta')
  key_requests, key_tokens = bucket(fields, 1), bucket(fields, 4)
  is_requests_throttled = ARGV[5] ~= '' and tonumber(ARGV[5]) < tier[2]
  is_tokens_throttled = ARGV[6] ~= '' and tonumber(ARGV[6]) < tier[3]
  if is_requests_throttled then
    was_changed = settle(key_requests, tonumber(ARGV[5])) or was_changed
  end
  if is_tokens_throttled then
    was_changed = settle(key_tokens, tonumber(ARGV[6])) or was_changed
  end
end
local is_throttled = is_requests_throttled or is_tokens_throttled

local function keep_buckets()
  keep(account, requests, tokens)
  if is_throttled then
    keep_of_key(of_key, key_requests, key_tokens)
  end
end

local function seen(code)
  return {code, now, available, running, tier[4], requests[1], requests[2], tokens[1], tokens[2],
    is_requests_throttled and key_requests[1] or 0, is_requests_throttled and key_requests[2] or 0,
    is_tokens_throttled and key_tokens[1] or 0, is_tokens_throttled and key_tokens[2] or 0, paid}
end

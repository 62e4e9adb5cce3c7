-- limits.Bucket, in the same exact integers: {limit, owed units, instant}. Doubles are exact up to the largest limit.
local UNITS = 60000000

local function bucket(fields, first)
  return {tonumber(fields[first] or 0), tonumber(fields[first + 1] or 0), tonumber(fields[first + 2] or 0)}
end

-- Brings a bucket to now under a limit; true if the limit was another one.
local function settle(it, limit)
  local elapsed_us = now - it[3]
  if it[2] > 0 and elapsed_us > 0 then
    it[2] = math.max(0, it[2] - elapsed_us * (it[1] > 0 and it[1] or limit))
  end
  if elapsed_us > 0 then
    it[3] = now
  end
  if it[1] == limit then
    return false
  end
  local was_seen = it[1] > 0
  if was_seen then
    it[2] = math.min(it[2], limit * UNITS)
  end
  it[1] = limit
  return was_seen
end

local function take(it, tokens)
  it[2] = math.max(0, it[2] + tokens * UNITS)
end

-- Takes or gives back what an estimate was off by.
local function correct(it, tokens)
  if it[1] > 0 then
    settle(it, it[1])
  else
    it[3] = math.max(it[3], now)
  end
  take(it, tokens)
end

local function keep(key, requests, tokens)
  redis.call('HSET', key, 'rl', requests[1], 'ro', requests[2], 'ra', requests[3],
    'tl', tokens[1], 'to', tokens[2], 'ta', tokens[3])
end

-- The buckets of a key; they vanish a minute after they are full, which a missing bucket is as well.
local function keep_of_key(key, requests, tokens)
  keep(key, requests, tokens)
  local left_us = math.max(requests[2] / math.max(1, requests[1]), tokens[2] / math.max(1, tokens[1]))
  redis.call('PEXPIRE', key, math.floor(math.min(left_us / 1000, 86400000)) + 60000)
end

-- Corrects the buckets that a hold was taken from, those of its key included.
local function charge(key_id, is_throttled, requests, tokens)
  local fields = redis.call('HMGET', account, 'rl', 'ro', 'ra', 'tl', 'to', 'ta')
  local r, t = bucket(fields, 1), bucket(fields, 4)
  correct(r, requests)
  correct(t, tokens)
  keep(account, r, t)
  local of_key = account .. ':k:' .. key_id
  if key_id ~= '' and (is_throttled or redis.call('EXISTS', of_key) == 1) then
    fields = redis.call('HMGET', of_key, 'rl', 'ro', 'ra', 'tl', 'to', 'ta')
    r, t = bucket(fields, 1), bucket(fields, 4)
    correct(r, requests)
    correct(t, tokens)
    keep_of_key(of_key, r, t)
  end
end

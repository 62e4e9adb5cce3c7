-- The steps that a hold's life is made of.

-- The record as the steps below need it; nil if there is none.
local function read(call)
  local key = account .. ':h:' .. call
  local f = redis.call('HMGET', key, 'run', 's', 'amt', 'tok', 'fin', 'key', 'thr', 'idem', 'posted', 'til')
  if not f[2] then
    return nil
  end
  return {call = call, key = key, run = f[1], s = tonumber(f[2]), amount = tonumber(f[3] or 0),
    tokens = tonumber(f[4] or 0), is_final = f[5], key_id = f[6] or '', is_throttled = f[7], idempotency_key = f[8] or '',
    is_posted = f[9], lease_until = tonumber(f[10] or 0)}
end

local function is_live(it)
  return it.s == OPEN or it.s == FINISHED
end

local function lease(it)
  redis.call('HSET', it.key, 'til', now + LEASE_US)
  redis.call('ZADD', account .. ':l', now + LEASE_US, it.call)
end

local function raise(it, amount)
  if amount > it.amount then
    redis.call('HINCRBY', account, 'held', amount - it.amount)
    redis.call('HSET', it.key, 'amt', amount)
    it.amount = amount
  end
end

-- Ends the running part; a known cost becomes the amount.
local function finish(it, cost)
  if it.s == OPEN then
    redis.call('HINCRBY', account, 'run', -1)
    it.s = FINISHED
    redis.call('HSET', it.key, 's', FINISHED)
  end
  if cost and cost ~= it.amount then
    redis.call('HINCRBY', account, 'held', cost - it.amount)
    redis.call('HSET', it.key, 'amt', cost)
    it.amount = cost
  end
end

-- Replaces the estimate of tokens by what was used, once.
local function correct_tokens(it, used)
  if it.is_final then
    return
  end
  redis.call('HSET', it.key, 'tok', used, 'fin', 1)
  if used ~= it.tokens then
    charge(it.key_id, it.is_throttled, 0, used - it.tokens)
  end
  it.is_final, it.tokens = 1, used
end

-- Ends a live hold for ever. What is left remembers that the call id was used, and for a call that still runs its tokens.
local function close(it, state)
  if it.s == OPEN then
    redis.call('HINCRBY', account, 'run', -1)
  end
  redis.call('HINCRBY', account, 'held', 0 - it.amount)
  redis.call('ZREM', account .. ':l', it.call)
  if it.idempotency_key ~= '' then
    local claim = account .. ':i:' .. it.idempotency_key
    if redis.call('HGET', claim, 'call') == it.call then
      if state == CLOSED then
        redis.call('HSET', claim, 'posted', 1)
      else
        redis.call('DEL', claim)
      end
    end
  end
  redis.call('DEL', it.key)
  redis.call('HSET', it.key, 'run', it.run, 's', state)
  if it.s == OPEN and state == CLOSED and not it.is_final then
    redis.call('HSET', it.key, 'tok', it.tokens, 'key', it.key_id)
    if it.is_throttled then
      redis.call('HSET', it.key, 'thr', 1)
    end
  end
  redis.call('PEXPIRE', it.key, TOMBSTONE_MS)
end

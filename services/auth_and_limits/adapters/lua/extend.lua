-- Raises the amount of an OPEN hold to an absolute one: ARGV[2] epoch, [3] call, [4] run, [5] amount.
local state = redis.call('HMGET', account, 'e', 'bal', 'held')
if state[1] ~= ARGV[2] then
  return {UNLOADED, now}
end
local it = read(ARGV[3])
if not it or it.s ~= OPEN or it.run ~= ARGV[4] then
  return {NOT_OPEN, now}
end
local amount = tonumber(ARGV[5])
local available = tonumber(state[2] or 0) - tonumber(state[3] or 0)
if amount > it.amount and amount - it.amount > available then
  return {OUT, now, available}
end
raise(it, amount)
return {DONE, now, fields_of(it.key)}

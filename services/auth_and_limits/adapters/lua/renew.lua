-- A runner's whole record of a hold: ARGV[2] call, [3] run, [4] runner, [5] key id, [6] state, [7] amount, [8] tokens,
-- [9] price book. Prolongs the lease, or recreates what was lost. Answers whether the hold is gone for this run.
local state, amount, tokens = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local it = read(ARGV[2])
if not it then
  local hold = account .. ':h:' .. ARGV[2]
  redis.call('HSET', hold, 'run', ARGV[3], 'by', ARGV[4], 'key', ARGV[5], 's', state, 'amt', ARGV[7], 'tok', ARGV[8],
    'book', ARGV[9])
  redis.call('HINCRBY', account, 'held', amount)
  if state == OPEN then
    redis.call('HINCRBY', account, 'run', 1)
  end
  lease({key = hold, call = ARGV[2]})
  return {DONE, now, 0}
end
if it.run ~= ARGV[3] or not is_live(it) then
  return {DONE, now, 1}
end
redis.call('HSET', it.key, 'by', ARGV[4])
lease(it)
if it.s == OPEN then
  if state == FINISHED then -- its Finish was lost
    finish(it, amount)
    correct_tokens(it, tokens)
  else
    raise(it, amount)
  end
end
return {DONE, now, 0}

-- The outcome of a call whose lease is still run out: ARGV[2] call, [3] `1` if it is posted, [4] what was charged.
-- A posted one keeps its charge for another lease: its balance is on the way, and may have come before a recreation.
local it = read(ARGV[2])
if not it or not is_live(it) then
  redis.call('ZREM', account .. ':l', ARGV[2])
elseif it.lease_until <= now then
  if ARGV[3] ~= '1' then
    close(it, VOIDED)
  elseif it.is_posted then
    close(it, CLOSED)
  else
    redis.call('HSET', it.key, 'posted', 1)
    lease(it)
    finish(it, tonumber(ARGV[4]))
  end
end
return {DONE, now}

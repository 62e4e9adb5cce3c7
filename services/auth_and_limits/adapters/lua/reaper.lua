-- Whether ARGV[2] is the one process that looks for lapsed leases, for ARGV[3] milliseconds. KEYS[1] is `mws:reaper`.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[2] then
  return {DONE, now, 0}
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {DONE, now, 1}

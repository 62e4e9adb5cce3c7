-- The life of this store's memory: ARGV[2] a name for a new one, [3] the server's run. KEYS[1] is `mws:epoch`.
-- No epoch: everything was wiped. Another run: it was restarted, or a replica was promoted, and the last moments may be
-- missing. Either way a new epoch begins; answers its name and its age in microseconds.
local epoch = redis.call('HMGET', KEYS[1], 'id', 'run', 'at')
if not epoch[1] or epoch[2] ~= ARGV[3] then
  redis.call('HSET', KEYS[1], 'id', ARGV[2], 'run', ARGV[3], 'at', now)
  return {DONE, now, ARGV[2], 0}
end
return {DONE, now, epoch[1], math.max(0, now - tonumber(epoch[3]))}

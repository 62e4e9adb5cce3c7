-- What metering says of an account that this epoch does not know yet: ARGV[2] epoch, [3] seq, [4] balance, [5] paid.
if tonumber(ARGV[3]) > tonumber(redis.call('HGET', account, 'seq') or 0) then
  redis.call('HSET', account, 'seq', ARGV[3], 'bal', ARGV[4], 'paid', ARGV[5])
end
redis.call('HSET', account, 'e', ARGV[2])
return {DONE, now}

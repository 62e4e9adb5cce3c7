-- A balance from metering, and holds whose outcome is in it: ARGV[2] seq, [3] balance, [4] paid, [5..] calls.
for index = 5, #ARGV do
  local it = read(ARGV[index])
  if it and is_live(it) then
    close(it, CLOSED)
  end
end
if tonumber(ARGV[2]) > tonumber(redis.call('HGET', account, 'seq') or 0) then
  redis.call('HSET', account, 'seq', ARGV[2], 'bal', ARGV[3], 'paid', ARGV[4])
end
return {DONE, now}

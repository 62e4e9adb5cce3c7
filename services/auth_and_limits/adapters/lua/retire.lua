-- Forgets accounts without live holds: ARGV[2] before which instant they were last heard of, [3..] the accounts.
for index = 3, #ARGV do
  local heard_at = redis.call('ZSCORE', KEYS[1], ARGV[index])
  if heard_at and tonumber(heard_at) < tonumber(ARGV[2]) then
    redis.call('ZREM', KEYS[1], ARGV[index])
  end
end
return {DONE, now}

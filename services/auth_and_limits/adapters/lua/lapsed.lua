-- Calls whose lease has run out, at most ARGV[2], after how many live holds there are.
local calls = redis.call('ZRANGEBYSCORE', account .. ':l', '-inf', now, 'LIMIT', 0, ARGV[2])
return {DONE, now, redis.call('ZCARD', account .. ':l'), calls}

-- A hold's record: ARGV[2] call.
local hold = account .. ':h:' .. ARGV[2]
if redis.call('EXISTS', hold) == 0 then
  return {UNKNOWN, now}
end
return {DONE, now, fields_of(hold)}

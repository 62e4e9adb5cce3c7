-- Releases an OPEN hold as if it had never been: ARGV[2] call, [3] run.
local it = read(ARGV[2])
if not it or (it.s == VOIDED and it.run == ARGV[3]) then
  return {DONE, now}
end
if it.s ~= OPEN or it.run ~= ARGV[3] then
  return {NOT_OPEN, now}
end
close(it, VOIDED)
charge(it.key_id, it.is_throttled, -1, 0 - it.tokens)
return {DONE, now}

-- How a running call ended: ARGV[2] call, [3] run, [4] cost, [5] tokens used, empty for not known.
local it = read(ARGV[2])
if not it or it.run ~= ARGV[3] or it.s == VOIDED then
  return {DONE, now}
end
if is_live(it) then
  finish(it, ARGV[4] ~= '' and tonumber(ARGV[4]) or nil)
end
if ARGV[5] ~= '' and (is_live(it) or redis.call('HEXISTS', it.key, 'tok') == 1) then
  correct_tokens(it, tonumber(ARGV[5]))
end
return {DONE, now}

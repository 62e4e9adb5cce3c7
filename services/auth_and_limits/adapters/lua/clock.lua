-- Every script begins with this: its account, its time, and the end of its patience.
-- KEYS[1] is the account's key, `mws:{account}`; all that a decision reads or writes hangs below it, in one hash slot.
local LATE, UNLOADED, REFUSED, DONE, REPEAT, EARLIER, ALREADY, REUSED, NOT_OPEN, OUT, UNKNOWN = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local OPEN, FINISHED, CLOSED, VOIDED = 1, 2, 3, 4
local LEASE_US, TOMBSTONE_MS, CLAIM_MS = 20000000, 3600000, 86400000
local account = KEYS[1]
local now = now_us()
if now > tonumber(ARGV[1]) then
  return {LATE, now} -- nobody waits for the answer any more
end

-- A hold's whole record, in the order in which the adapter reads it.
local function fields_of(hold)
  return redis.call('HMGET', hold, 'run', 'by', 'key', 's', 'amt', 'tok', 'book', 'idem', 'body', 'til', 'fin', 'posted')
end

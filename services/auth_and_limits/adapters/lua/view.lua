-- The limits now; takes nothing.
return seen(DONE)

"""The metering service: usage events in, money in an append-only ledger out.

Owns charging, the ledger and its reports; refuses to decide who may call and what a call may cost beforehand.
"""

"""routing-and-inference: turns a model name into a profile, an upstream and a stream of typed events, and reports what was used.

Owns the catalogue, the choice of upstreams and the running call; refuses to decide who may call (auth) and what it costs (metering).
"""

"""routing-and-inference: a model name becomes a profile, an upstream, a stream of typed events and a usage event.

Owns the catalogue, the choice of upstreams and the running call; refuses to decide who may call and what it costs.
"""

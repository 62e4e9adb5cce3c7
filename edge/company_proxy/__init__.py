"""The company proxy: Anthropic Messages for a company's staff, at `/proxy/anthropic`, with its own errors and identity.

Owns that public surface; refuses to translate: requests and answers pass through.
"""

PREFIX = "/proxy/"
BASE = "/proxy/anthropic"

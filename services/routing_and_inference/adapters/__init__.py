"""What connects the use cases to the other services and to this machine's disk.

Owns one technology per module; refuses to decide anything about a call.
"""

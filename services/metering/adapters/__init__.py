"""The stores behind metering's ports.

Owns one technology per module; refuses to decide anything about money.
"""

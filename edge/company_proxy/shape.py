"""The company proxy's shape as a value: how it reads a request, passes an answer on and words a failure.

Owns the choice of functions only; refuses to hold any of them.
"""

from edge.answer import Head
from edge.anthropic import events
from edge.ask import Ask
from edge.company_proxy.answers import NativeFold, NativeStream
from edge.company_proxy.errors import render, render_event
from edge.company_proxy.requests import read_messages
from edge.shapes import Shape


def _stream(_head: Head, _ask: Ask) -> NativeStream:
    return NativeStream()


def _fold(_head: Head, _ask: Ask) -> NativeFold:
    return NativeFold()


PROXY = Shape("company_proxy", read_messages, _stream, _fold, render, render_event, events.PING, door=b"company proxy ")

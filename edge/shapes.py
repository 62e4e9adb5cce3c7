"""The two public shapes as values: how each reads a request, writes an answer and words a failure.

Owns the choice of functions only; refuses to hold any translation itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edge.answer import AnswerFold, AnswerStream, Head
from edge.anthropic import errors as anthropic_errors
from edge.anthropic import events
from edge.anthropic.events import MessageFold, MessageStream
from edge.anthropic.requests import read_messages
from edge.ask import Ask, Reply
from edge.openai import chunks
from edge.openai import errors as openai_errors
from edge.openai.chunks import ChatFold, ChatStream
from edge.openai.requests import read_chat
from services.runtime.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Shape:
    """One public dialect."""

    name: str
    read: Callable[[bytes], Ask]
    stream: Callable[[Head, Ask], AnswerStream]
    fold: Callable[[Head, Ask], AnswerFold]
    render: Callable[[GatewayError, str], Reply]
    render_event: Callable[[GatewayError, str], bytes]
    ping: bytes
    door: bytes = b""  # set where credentials are of another kind than API keys


def _message_stream(head: Head, ask: Ask) -> AnswerStream:
    return MessageStream(head, shows_thinking=ask.shows_thinking, omits_thinking_text=ask.omits_thinking_text)


def _message_fold(head: Head, ask: Ask) -> AnswerFold:
    return MessageFold(head, shows_thinking=ask.shows_thinking, omits_thinking_text=ask.omits_thinking_text)


def _chat_stream(head: Head, ask: Ask) -> AnswerStream:
    return ChatStream(
        head,
        include_usage=ask.include_usage,
        is_legacy=ask.wants_function_call,
        shows_thinking=ask.shows_thinking,
    )


def _chat_fold(head: Head, ask: Ask) -> AnswerFold:
    return ChatFold(head, is_legacy=ask.wants_function_call, shows_thinking=ask.shows_thinking)


ANTHROPIC = Shape(
    "anthropic",
    read_messages,
    _message_stream,
    _message_fold,
    anthropic_errors.render,
    anthropic_errors.render_event,
    events.PING,
)
OPENAI = Shape(
    "openai", read_chat, _chat_stream, _chat_fold, openai_errors.render, openai_errors.render_event, chunks.PING
)

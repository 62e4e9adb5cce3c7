"""Reads token counts out of what upstreams report, whatever form the numbers have.

Owns the arithmetic from vendors' overlapping counts to disjoint classes; refuses to estimate what was not reported.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage

from services.routing_and_inference.upstreams import errors

_MOST = 1 << 53  # a count above is a defect of the sender


def count(value: object) -> int | None:
    """A count >= 0 from an integer, a float or a text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float):
        value = int(value) if -_MOST < value < _MOST else None
    return value if isinstance(value, int) and 0 <= value < _MOST else None


def _inside(usage: Mapping[str, Any], *names: str) -> int | None:
    """The first count found: `a.b` is the member b of the member a."""
    for name in names:
        outer, _, inner = name.partition(".")
        value = usage.get(outer)
        if inner:
            value = value.get(inner) if isinstance(value, dict) else None
        found = count(value)
        if found is not None:
            return found
    return None


_Count = Annotated[int, msgspec.Meta(ge=0, lt=_MOST)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _UsualUsage(msgspec.Struct):
    """Usage as most upstreams report it."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cached_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    prompt_cache_hit_tokens: _Count | None = None


_decode_usual = msgspec.json.Decoder(_UsualUsage).decode
_NO_PROMPT_DETAILS, _NO_COMPLETION_DETAILS = _PromptDetails(), _CompletionDetails()


class _Counted(msgspec.Struct):
    """What the dialect's overlapping counts come to; None: not reported."""

    prompt: int | None
    completion: int | None
    total: int | None
    cached: int | None
    written: int | None
    reasoning: int | None


def of_openai(payload: bytes | msgspec.Raw, counts: TokenUsage) -> None:
    """Cached tokens are part of the prompt here, and reasoning of the completion; xAI leaves reasoning out of it."""
    counted = _counted_usually(payload) or _counted_leniently(payload)
    output = counted.completion
    if counted.prompt is not None:
        counts.input_tokens = max(counted.prompt - (counted.cached or 0) - (counted.written or 0), 0)
        if counted.total is not None:
            output = max(counted.completion or 0, counted.total - counted.prompt)
    if output is not None:
        counts.output_tokens = output
    if counted.cached is not None:
        counts.cache_read_tokens = counted.cached
    if counted.written is not None:
        counts.cache_write_5m_tokens = counted.written
    if counted.reasoning is not None:
        counts.reasoning_tokens = counted.reasoning


def _counted_usually(payload: bytes | msgspec.Raw) -> _Counted | None:
    """None: something is unusual, so every member has to be looked at."""
    try:
        usage = _decode_usual(payload)
    except errors.UNREADABLE:
        return None
    prompt_details = usage.prompt_tokens_details or _NO_PROMPT_DETAILS
    cached = prompt_details.cached_tokens
    if cached is None:
        cached = usage.prompt_cache_hit_tokens if usage.cached_tokens is None else usage.cached_tokens
    return _Counted(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached,
        usage.cache_creation_input_tokens
        if prompt_details.cache_write_tokens is None
        else prompt_details.cache_write_tokens,
        (usage.completion_tokens_details or _NO_COMPLETION_DETAILS).reasoning_tokens,
    )


def _counted_leniently(payload: bytes | msgspec.Raw) -> _Counted:
    try:
        usage = msgspec.json.decode(payload)
    except errors.UNREADABLE:
        usage = None
    if not isinstance(usage, dict):
        usage = {}
    return _Counted(
        _inside(usage, "prompt_tokens", "input_tokens"),
        _inside(usage, "completion_tokens", "output_tokens"),
        _inside(usage, "total_tokens"),
        _inside(
            usage,
            "prompt_tokens_details.cached_tokens",
            "input_tokens_details.cached_tokens",
            "cached_tokens",
            "prompt_cache_hit_tokens",
        ),
        _inside(usage, "prompt_tokens_details.cache_write_tokens", "cache_creation_input_tokens"),
        _inside(usage, "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens"),
    )


def of_anthropic(usage: Mapping[str, Any], counts: TokenUsage) -> None:
    """Overwrites `counts` with what is reported here: totals so far, in disjoint classes already."""
    _set(counts, "input_tokens", _inside(usage, "input_tokens"))
    _set(counts, "output_tokens", _inside(usage, "output_tokens"))
    _set(counts, "cache_read_tokens", _inside(usage, "cache_read_input_tokens"))
    _set(counts, "reasoning_tokens", _inside(usage, "output_tokens_details.thinking_tokens"))
    written = _inside(usage, "cache_creation_input_tokens")
    short = _inside(usage, "cache_creation.ephemeral_5m_input_tokens")
    long = _inside(usage, "cache_creation.ephemeral_1h_input_tokens")
    if short is None and long is None:
        _set(counts, "cache_write_5m_tokens", written)
        return
    _set(counts, "cache_write_1h_tokens", long)
    _set(counts, "cache_write_5m_tokens", short if short is not None else max((written or 0) - (long or 0), 0))


def _set(counts: TokenUsage, name: str, value: int | None) -> None:
    if value is not None:
        setattr(counts, name, value)

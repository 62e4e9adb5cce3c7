"""Reads token counts out of what upstreams report, whatever form the numbers have.

Owns the arithmetic from vendors' overlapping counts to disjoint classes; refuses to estimate what was not reported.
"""

from collections.abc import Mapping
from typing import Any

from mws.common.v1.token_usage_pb2 import TokenUsage

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
            value = value.get(inner) if isinstance(value, Mapping) else None
        found = count(value)
        if found is not None:
            return found
    return None


def of_openai(usage: Mapping[str, Any]) -> TokenUsage:
    """Cached tokens are part of the prompt here, and reasoning of the completion; xAI leaves reasoning out of it."""
    counts = TokenUsage()
    prompt = _inside(usage, "prompt_tokens", "input_tokens")
    completion = _inside(usage, "completion_tokens", "output_tokens")
    total = _inside(usage, "total_tokens")
    cached = _inside(
        usage,
        "prompt_tokens_details.cached_tokens",
        "input_tokens_details.cached_tokens",
        "cached_tokens",
        "prompt_cache_hit_tokens",
    )
    written = _inside(usage, "prompt_tokens_details.cache_write_tokens", "cache_creation_input_tokens")
    reasoning = _inside(usage, "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens")
    if prompt is not None:
        counts.input_tokens = max(prompt - (cached or 0) - (written or 0), 0)
    if completion is not None:
        counts.output_tokens = (
            max(completion, total - prompt) if total is not None and prompt is not None else completion
        )
    elif total is not None and prompt is not None:
        counts.output_tokens = max(total - prompt, 0)
    if cached is not None:
        counts.cache_read_tokens = cached
    if written is not None:
        counts.cache_write_5m_tokens = written
    if reasoning is not None:
        counts.reasoning_tokens = reasoning
    return counts


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

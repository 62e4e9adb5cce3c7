"""What an upstream may be told to do otherwise than its dialect says, and what is known of providers in this respect.

Data only. An upstream of the catalogue may name its `provider`; whatever its own `options` say wins.
"""

from collections.abc import Mapping

from services.routing_and_inference.catalog import Option

# Settings that an upstream may carry under `options`, by name. Which dialect reads which is told by its module.
OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "forward_fields": list,  # unknown top-level fields of the same dialect that may reach the upstream
    "connect_timeout_s": (int, float),
    "first_byte_timeout_s": (int, float),  # until the head of the answer
    "first_token_timeout_s": (int, float),  # until the first content of a stream; then another upstream is tried
    "idle_timeout_s": (int, float),  # between two pieces of a stream
    "max_tokens_field": str,  # `max_tokens` or `max_completion_tokens`
    "stream_usage": bool,  # ask for usage at the end of a stream; true unless stated
    "tool_ids": str,  # `verbatim`; `encoded`: letters, digits, `_`, `-` only; `alnum9`: nine letters and digits
    "drop_fields": list,  # top-level fields that the upstream refuses
    "drop_schema_keywords": list,  # JSON Schema keywords that it refuses in a tool's parameters
    "system_role": str,  # `system` or `developer`
    "system_in_messages": str,  # `keep` or `fold`: instructions inside the conversation
    "most_stops": int,  # stop sequences that it takes, 0: any number; we apply the others ourselves
    "image_urls": bool,  # it fetches images; true unless stated
    "files": bool,  # it takes documents as files; true unless stated
    "history_reasoning": str,  # the field that takes earlier reasoning back, `reasoning_content` for example
    "continue_final_message": bool,  # it has to be told that a last message of the assistant is to be continued
    "json_schema": str,  # `tool`: an answer by a schema is asked for as the input of a forced tool
    "truncates_dimensions": bool,  # embeddings may be cut to fewer dimensions by us
    "server_tools": list,  # how the kinds of tools begin that may run at the upstream: each has a price of its own
    "anthropic_version": str,
    "anthropic_beta": str,
    "batch_size": int,  # inputs per embedding request
    "takes_base64": bool,  # embeddings may be asked for as base64
    "takes_dimensions": bool,
    "tokens_per_second": (int, float),  # of the simulated upstream; 0: at once
    "reasoning": str,
    "prefill": bool,  # writes on from an assistant's message; unless stated true for `anthropic`, false for `openai`
}

# Fields of vLLM's and SGLang's dialect that a caller of the OpenAI shape may send through.
_OPEN_SERVERS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "chat_template_kwargs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "logit_bias",
)
# JSON Schema that Gemini refuses in the parameters of a tool.
_NOT_IN_GEMINI = (
    "$schema",
    "$id",
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "const",
    "if",
    "then",
    "else",
    "not",
    "contentMediaType",
)

PROVIDERS: Mapping[str, Mapping[str, Option]] = {
    # OpenAI dialect
    "openai": {"forward_fields": ("logit_bias", "user", "safety_identifier", "verbosity", "prompt_cache_key")},
    "openai_reasoning": {
        "max_tokens_field": "max_completion_tokens",
        "drop_fields": ("temperature", "top_p", "presence_penalty", "frequency_penalty"),
        "system_role": "developer",
        "reasoning": "effort",
        "forward_fields": ("user", "safety_identifier", "verbosity", "prompt_cache_key"),
    },
    "azure": {"max_tokens_field": "max_completion_tokens"},
    "vllm": {
        "prefill": True,
        "continue_final_message": True,
        "most_stops": 0,
        "reasoning": "enable_thinking",
        "files": False,
        "forward_fields": _OPEN_SERVERS,
    },
    "sglang": {
        "prefill": True,
        "continue_final_message": True,
        "most_stops": 0,
        "reasoning": "enable_thinking",
        "files": False,
        "forward_fields": _OPEN_SERVERS,
    },
    "groq": {"files": False, "drop_fields": ("presence_penalty", "frequency_penalty")},
    "mistral": {"stream_usage": False, "tool_ids": "alnum9", "files": False},
    "alibaba": {"files": False},
    "moonshot": {"files": False},
    "xai": {"files": False},
    "gemini": {"drop_schema_keywords": _NOT_IN_GEMINI, "files": False},
    "openrouter": {},
    "ollama": {
        "drop_fields": ("tool_choice", "parallel_tool_calls"),
        "image_urls": False,
        "files": False,
        "most_stops": 0,
        "forward_fields": ("top_k",),
    },
    "deepseek": {"files": False, "most_stops": 16},
    # Anthropic dialect
    "anthropic": {"forward_fields": ("metadata", "service_tier", "container", "context_management", "speed")},
    "anthropic_2026": {
        "anthropic_version": "2026-10-21",
        "drop_fields": ("temperature", "top_p", "top_k"),
        "reasoning": "effort",
        "forward_fields": ("metadata", "service_tier", "container", "context_management", "speed"),
    },
    "anthropic_compatible": {"json_schema": "tool", "system_in_messages": "fold"},
    # Embeddings and rerank
    "tei": {"batch_size": 32},
}

"""What the OpenAPI document says of OpenAI-shape bodies beyond what their Structs can: forms, pairs, narrower values.

Owns those refinements; refuses to check anything itself, which the readers do.
"""

from typing import Any

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_TEXTS: Schema = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}
_TOKENS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_OBJECT_SCHEMA: Schema = {
    "description": "JSON Schema of an object; any object if it is left out.",
    "type": "object",
    "properties": {"type": {"const": "object"}, "properties": {"type": "object"}},
}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL], "default": None}


def _only_one(what: str) -> Schema:
    return _or_null({"type": "integer", "minimum": 1, "maximum": 1, "description": what})


# Members by component, in place of what the Struct says.
_MEMBERS: dict[str, dict[str, Schema]] = {
    "OpenAIChatRequest": {
        "n": _only_one("One answer per request."),
        "best_of": _only_one("One answer per request."),
        "modalities": _or_null({"type": "array", "items": {"enum": ["text"]}}),
        "stop": {
            "anyOf": [{"type": "string"}, {"type": "array", "maxItems": 4, "items": {"type": "string"}}, _NULL],
            "default": None,
        },
        "tool_choice": {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {"$ref": "#/components/schemas/OpenAIToolChoiceParam"},
                _NULL,
            ],
            "default": None,
        },
    },
    "OpenAIFunctionCall": {"name": {"type": "string", "minLength": 1}},
    "OpenAIFunction": {"parameters": _OBJECT_SCHEMA},
    "OpenAIImageUrl": {"url": {"type": "string", "pattern": "^(https?://|data:[a-z/]*;base64,)"}},
    "EmbeddingsRequest": {
        "input": {
            "description": "A text, texts, one list of token ids, or several; at most 2048.",
            "anyOf": [
                {"type": "string", "minLength": 1},
                {**_TEXTS, "maxItems": 2048},
                _TOKENS,
                {"type": "array", "minItems": 1, "maxItems": 2048, "items": _TOKENS},
            ],
        }
    },
    "RerankRequest": {
        "query": {"type": "string", "minLength": 1},
        "documents": {
            "description": "Texts, or objects with a `text` or with the members to rank by.",
            "type": "array",
            "minItems": 1,
            "maxItems": 1000,
            "items": {"anyOf": [{"type": "string"}, {"type": "object"}]},
        },
    },
}


def refine(components: dict[str, Schema]) -> None:
    """Narrows the components of OpenAI-shape bodies, in place."""
    for name, members in _MEMBERS.items():
        components[name]["properties"].update(members)
    components["OpenAIChatRequest"]["properties"]["messages"]["minItems"] = 1
    components["OpenAIMessageParam"] = _turns(components["OpenAIMessageParam"])
    components["OpenAIToolParam"] = _tools(components["OpenAIToolParam"])
    _file(components["OpenAIFileSource"])


def _turns(turn: Schema) -> Schema:
    """One form per kind of role: what each needs differs."""
    members: dict[str, Schema] = turn["properties"]
    said = {"anyOf": [form for form in members["content"]["anyOf"] if form != _NULL]}
    text = {"type": "string", "minLength": 1}
    shared = {name: members[name] for name in ("name",)}

    def form(roles: list[str], needs: dict[str, Schema], more: dict[str, Schema]) -> Schema:
        properties = {"role": {"enum": roles}, **shared, **more, **needs}
        return {"type": "object", "properties": properties, "required": ["role", *needs]}

    return {
        "title": turn["title"],
        "description": turn["description"],
        "anyOf": [
            form(["developer", "system", "user"], {"content": said}, {}),
            form(["assistant"], {}, members | {"role": {"enum": ["assistant"]}}),
            form(["tool"], {"content": said, "tool_call_id": text}, {}),
            form(["function"], {"name": text}, {"content": members["content"]}),
        ],
    }


def _tools(tool: Schema) -> Schema:
    """A function, or a tool that only an upstream of this dialect knows."""
    named: Schema = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}}, "required": ["name"]}
    forms = {"function": {"$ref": "#/components/schemas/OpenAIFunction"}, "custom": named}
    return {
        "title": tool["title"],
        "description": tool["description"],
        "anyOf": [
            {"type": "object", "properties": {"type": {"const": kind}, kind: form}, "required": ["type", kind]}
            for kind, form in forms.items()
        ],
    }


def _file(source: Schema) -> None:
    """Content or an id; text that begins as a URL of data goes on as one."""
    data: Schema = {"type": "string", "pattern": "^data:[a-z/]*;base64,"}
    source["properties"]["file_data"] = _or_null(data)
    source["anyOf"] = [
        {"properties": {"file_data": data}, "required": ["file_data"]},
        {"properties": {"file_id": {"type": "string"}}, "required": ["file_id"]},
    ]

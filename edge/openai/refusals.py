"""What a Chat Completions request may ask for, and is refused on purpose: it would change what is answered or charged.

Owns those rules and their codes; refuses to drop in silence what an answer would then lie about.
"""

from edge.openai import schema
from edge.problems import BadFieldError, Path

_STOPS_MAX = 4


class CodedFieldError(BadFieldError):
    """A field that breaks a rule for which OpenAI has a `code` of its own. `text` is the whole message."""

    def __init__(self, path: Path, text: str, code: str) -> None:
        super().__init__(path, "value", text)
        self.openai_code = code


def refuse_unserved(options: schema.Options) -> None:
    """Raises for more than one answer, for spoken answers, and for more stop sequences than the dialect has."""
    for name in ("n", "best_of"):
        if (getattr(options, name) or 1) > 1:
            raise CodedFieldError(
                (name,),
                f"Unsupported value: '{name}' does not support more than 1 here.",
                "unsupported_value",
            )
    if options.modalities and "audio" in options.modalities:
        raise CodedFieldError(
            ("modalities",), "Unsupported value: 'modalities' does not support 'audio' here.", "unsupported_value"
        )
    if isinstance(options.stop, list) and len(options.stop) > _STOPS_MAX:
        raise CodedFieldError(
            ("stop",),
            f"Invalid 'stop': array too long. Expected an array with maximum length {_STOPS_MAX}, "
            f"but got an array with length {len(options.stop)} instead.",
            "array_above_max_length",
        )

"""How large a call may get: token estimates, the bound that is held in money, and what a balance would cover.

Pure integer arithmetic on measured sizes; refuses to look into messages (`prompt`) and to talk to anyone.
"""

import msgspec

from services.routing_and_inference.catalog import Price, Profile

IMAGE_TOKENS = 1_600  # of a document that cannot be read here as well: about a page
CHARACTERS_PER_TOKEN = 4
BYTES_PER_DOCUMENT_TOKEN = 4
SLICE_TOKENS = 4_096  # what a call without a stated maximum holds, and extends by
RATE_OUTPUT_TOKENS = 1_024  # the most output that is taken from the minute before it is known
DOCUMENTS_PER_SEARCH_UNIT = 100

# The bound's rates: in practice ASCII text has at most a token per three characters, any other character at most two.
_ASCII_PER_TOKEN = 3
_TOKENS_PER_OTHER = 2


class PromptSize(msgspec.Struct, frozen=True):
    """What was measured in a prompt. Characters are Unicode code points of everything that is text or JSON."""

    ascii_characters: int = 0
    other_characters: int = 0
    images: int = 0
    documents: int = 0  # whose text nobody here can read
    document_bytes: int = 0  # of documents that travel as bytes
    has_unknown_document: bool = False  # one that only the upstream can fetch


def estimated_tokens(characters: int, images: int = 0) -> int:
    """The documented rough count: 4 characters per token, 1,600 per image or unread document, rounded up."""
    return -(-characters // CHARACTERS_PER_TOKEN) + IMAGE_TOKENS * images  # -(-a // b) is a / b, rounded up


def estimated_input_tokens(size: PromptSize) -> int:
    """The same for a prompt; at least 1."""
    return max(1, estimated_tokens(size.ascii_characters + size.other_characters, size.images + size.documents))


def output_bound_tokens(ascii_characters: int, other_characters: int) -> int:
    """The most tokens that this much text can have been."""
    return -(-ascii_characters // _ASCII_PER_TOKEN) + _TOKENS_PER_OTHER * other_characters


def input_bound_tokens(size: PromptSize, context_tokens: int) -> int:
    """The most tokens that the upstream can count for a prompt. `context_tokens` 0: no ceiling is known."""
    if size.has_unknown_document and context_tokens:
        return context_tokens
    bound = output_bound_tokens(size.ascii_characters, size.other_characters)
    bound += IMAGE_TOKENS * (size.images + size.documents) + -(-size.document_bytes // BYTES_PER_DOCUMENT_TOKEN)
    return min(bound, context_tokens) if context_tokens else bound


def search_units(documents: int) -> int:
    """One per 100 documents, rounded up."""
    return -(-documents // DOCUMENTS_PER_SEARCH_UNIT)


def output_limit(profile: Profile, stated_tokens: int, estimated_input: int) -> int:
    """A stated maximum, clamped to the profile's and to what the prompt leaves of the context; at least 1."""
    room = profile.context_tokens - estimated_input
    return max(1, min(stated_tokens, profile.max_output_tokens, room))


class Bound(msgspec.Struct, frozen=True):
    """What is held for a call: its prompt at most, and so many output tokens, each at its dearest."""

    input_nano_usd: int
    output_tokens: int
    output_nano_usd_per_token: int
    rate_tokens: int  # to take from the minute

    @property
    def amount_nano_usd(self) -> int:
        """The money to hold."""
        return self.amount_for(self.output_tokens)

    def amount_for(self, output_tokens: int) -> int:
        """The money to hold for another number of output tokens."""
        return self.input_nano_usd + output_tokens * self.output_nano_usd_per_token

    def affordable_output_tokens(self, available_nano_usd: int, most_tokens: int) -> int:
        """The largest `max_tokens` that a balance covers with this prompt, up to `most_tokens`; 0: not even one."""
        if self.output_nano_usd_per_token == 0:
            return most_tokens if available_nano_usd >= self.input_nano_usd else 0
        affordable = (available_nano_usd - self.input_nano_usd) // self.output_nano_usd_per_token
        return max(0, min(affordable, most_tokens))


def bound_generation(profile: Profile, size: PromptSize, max_output_tokens: int | None) -> Bound:
    """The bound of a generation; `max_output_tokens` as clamped, None: not stated."""
    output_tokens = SLICE_TOKENS if max_output_tokens is None else max_output_tokens
    return Bound(
        input_nano_usd=input_bound_tokens(size, profile.context_tokens) * profile.price.dearest_input_nano_usd,
        output_tokens=output_tokens,
        output_nano_usd_per_token=profile.price.output_nano_usd,
        rate_tokens=estimated_input_tokens(size) + min(output_tokens, RATE_OUTPUT_TOKENS),
    )


def bound_embedding(price: Price, size: PromptSize, token_ids: int) -> Bound:
    """The bound of an embedding call: texts as measured, and ids that are tokens already."""
    tokens = input_bound_tokens(size, 0) + token_ids
    return Bound(
        input_nano_usd=tokens * price.dearest_input_nano_usd,
        output_tokens=0,
        output_nano_usd_per_token=0,
        rate_tokens=max(1, estimated_tokens(size.ascii_characters + size.other_characters) + token_ids),
    )


def bound_rerank(price: Price, size: PromptSize, documents: int) -> Bound:
    """The bound of a rerank call: its search units are all that it costs."""
    return Bound(
        input_nano_usd=search_units(documents) * price.search_unit_nano_usd,
        output_tokens=0,
        output_nano_usd_per_token=0,
        rate_tokens=max(1, estimated_tokens(size.ascii_characters + size.other_characters)),
    )


class TextMeter:
    """Adds up characters, the ASCII ones apart, since they are bounded more tightly."""

    __slots__ = ("ascii_characters", "other_characters")

    def __init__(self) -> None:
        self.ascii_characters = 0
        self.other_characters = 0

    def add(self, text: str) -> None:
        """Counts a text."""
        if text.isascii():
            self.ascii_characters += len(text)
            return
        in_ascii = len(text.encode("ascii", "ignore"))
        self.ascii_characters += in_ascii
        self.other_characters += len(text) - in_ascii

    @property
    def characters(self) -> int:
        """All of them."""
        return self.ascii_characters + self.other_characters

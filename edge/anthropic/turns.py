"""The turns of a conversation in Anthropic Messages to neutral messages, instructions for a single turn included.

Owns roles and what belongs to a turn as a whole; refuses to know what stands in a block.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.anthropic.blocks import add_block, add_block_tolerantly
from edge.decoding import decode
from edge.problems import bad_value

_loose_message = msgspec.json.Decoder(schema.LooseMessage)
_ROLES = {
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "system": pb.ROLE_SYSTEM,
    "ctx": pb.ROLE_USER,  # stray roles of some Claude Code builds
    "msg": pb.ROLE_USER,
}
_BLOCKS_MAX = 100_000  # in all turns; nobody writes more, and each costs everyone time
Turn = schema.MessageParam | schema.LooseMessage


class Turns:
    """Appends turns to a generation, in order."""

    def __init__(self, generation: pb.Generation) -> None:
        self._generation = generation
        self._at = -1
        self._blocks_left = _BLOCKS_MAX
        self._passing: list[int] = []  # system messages that the next turn of the user ends
        self._effort = ""  # of the turn that is being answered, if a system message says so

    def add(self, item: schema.MessageParam | Raw) -> None:
        """Appends a turn. Raises BadFieldError."""
        self._at += 1
        turn: Turn = decode(_loose_message, item, ("messages", self._at)) if isinstance(item, Raw) else item
        role = _ROLES.get(turn.role)
        if role is None:
            raise bad_value(("messages", self._at, "role"), "Input should be 'user', 'assistant' or 'system'")
        if role == pb.ROLE_USER:
            self._end_passing()
        elif role == pb.ROLE_ASSISTANT:
            self._effort = ""
        self._append(turn, role)
        if role == pb.ROLE_SYSTEM:
            self._note_instruction(turn)

    def finish(self) -> None:
        """After the last turn."""
        if self._effort:
            self._generation.reasoning.effort = self._effort

    def _end_passing(self) -> None:
        for index in reversed(self._passing):
            del self._generation.messages[index]
        self._passing.clear()

    def _append(self, turn: Turn, role: "pb.Role.ValueType") -> None:
        message = self._generation.messages.add(role=role)
        if isinstance(turn.content, str):
            if turn.content:
                message.content.add().text.text = turn.content
        else:
            self._add_blocks(message, turn.content)
        if role == pb.ROLE_USER and not message.content:
            raise bad_value(("messages", self._at, "content"), "user messages must have non-empty content")

    def _add_blocks(self, message: pb.Message, blocks: "Sequence[schema.BlockParam] | Sequence[Raw]") -> None:
        self._blocks_left -= len(blocks)
        if self._blocks_left < 0:
            raise bad_value(("messages", self._at, "content"), f"at most {_BLOCKS_MAX} blocks are accepted")
        for index, block in enumerate(blocks):
            path = ("messages", self._at, "content", index)
            if isinstance(block, Raw):
                add_block_tolerantly(message.content, block, path, message.role)
            else:
                add_block(message.content, block, path, message.role)

    def _note_instruction(self, turn: Turn) -> None:
        if turn.output_config is not None and turn.output_config.effort is not None:
            self._effort = turn.output_config.effort
        messages = self._generation.messages
        if not messages[-1].content:
            del messages[-1]
        elif turn.clear_at == "next_user_message":
            self._passing.append(len(messages) - 1)

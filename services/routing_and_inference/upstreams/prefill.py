"""A conversation that ends with words of the assistant, which the answer is to continue.

Pure. Owns how it is recognised, and what is said to a model that cannot be made to write on.
"""

from typing import Final

from mws.inference.v1 import generation_pb2 as pb

GO_ON: Final = "Continue your last message from exactly where it ends. Repeat nothing of it and add no introduction."


def is_prefilled(generation: pb.Generation) -> bool:
    """Calls that wait for their results are no words."""
    if not generation.messages:
        return False
    last = generation.messages[-1]
    return last.role == pb.ROLE_ASSISTANT and not any(block.HasField("tool_call") for block in last.content)

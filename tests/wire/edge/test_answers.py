"""Answers of both shapes through the official SDKs, streamed and whole."""

from tests.wire.edge.running_edge import RunningEdge

ASK = [{"role": "user", "content": "hi"}]


async def test_a_message_and_its_stream_fold_to_the_same(edge: RunningEdge) -> None:
    async with edge.anthropic() as client:
        whole = await client.messages.create(model="claude-x", max_tokens=9, messages=ASK)
        async with client.messages.stream(model="claude-x", max_tokens=9, messages=ASK) as stream:
            folded = await stream.get_final_message()

    assert whole.content[0].text == "Hello"
    assert (folded.content, folded.stop_reason, folded.usage.output_tokens) == (
        folded.content,
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    assert folded.content == whole.content or folded.content[0].text == whole.content[0].text


async def test_a_completion_and_its_stream_fold_to_the_same(edge: RunningEdge) -> None:
    async with edge.openai() as client:
        whole = await client.chat.completions.create(model="gpt-4o", messages=ASK)
        async with client.chat.completions.stream(model="gpt-4o", messages=ASK) as stream:
            folded = await stream.get_final_completion()

    assert whole.choices[0].message.content == "Hello" == folded.choices[0].message.content
    assert whole.model == folded.model == "gpt-4o"

// What an application does with the Anthropic SDK for Node: run as a program against a gateway.
// Arguments: base URL, API key, key of an account without credit, key of an account with one request per minute.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const [baseURL, key, brokeKey, slowKey] = process.argv.slice(2);
const client = (apiKey = key) => new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const user = (content) => [{ role: "user", content }];
const textOf = (message) => message.content.filter((b) => b.type === "text").map((b) => b.text).join("");
const six = ["limit", "remaining", "reset"].flatMap((w) => ["requests", "tokens"].map((u) => `x-ratelimit-${w}-${u}`));
const checkHeaders = (headers) => {
  for (const name of [...six, "request-id"]) assert.ok(headers.get(name), `no ${name}`);
};
const weather = {
  name: "get_weather",
  description: "The weather of a city",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const question = 'call get_weather {"city": "Paris"}\ncall get_weather {"city": "Rome"}';

const { data: message, response } = await client()
  .messages.create({ model: "claude-sonnet-4-6", max_tokens: 200, messages: user("Hello") })
  .withResponse();
checkHeaders(response.headers);
assert.equal(message.model, "claude-sonnet-4-6");
assert.equal(message.stop_reason, "end_turn");
assert.ok(textOf(message) && message.usage.input_tokens > 0 && message.usage.output_tokens > 0);

const rivers = { model: "dragon", max_tokens: 500, messages: user("Tell me of rivers") };
const whole = await client().messages.create(rivers);
const stream = client().messages.stream(rivers);
const folded = await stream.finalMessage();
checkHeaders(stream.response.headers);
assert.equal(textOf(folded), textOf(whole));
assert.equal(folded.usage.output_tokens, whole.usage.output_tokens);

for (const streaming of [false, true]) {
  const ask = (messages) => {
    const body = { model: "dragon", max_tokens: 500, messages, tools: [weather] };
    return streaming ? client().messages.stream(body).finalMessage() : client().messages.create(body);
  };
  const first = await ask(user(question));
  const calls = first.content.filter((b) => b.type === "tool_use");
  assert.equal(first.stop_reason, "tool_use");
  assert.deepEqual(calls.map((c) => c.input), [{ city: "Paris" }, { city: "Rome" }]);
  const results = calls.map((c) => ({
    type: "tool_result",
    tool_use_id: c.id,
    content: `21 degrees in ${c.input.city}`,
  }));
  const second = await ask([
    ...user(question),
    { role: "assistant", content: first.content },
    { role: "user", content: results },
  ]);
  assert.equal(second.stop_reason, "end_turn");
  assert.match(textOf(second), /21 degrees in Rome/);
}

const bare = { model: "dragon", messages: user("x") };
const post = (apiKey, body) => client(apiKey).post("/v1/messages", { body });
const refusal = async (kind, status, promise) => {
  const error = await promise.then(() => assert.fail("expected a refusal"), (e) => e);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.status, status);
  return error;
};
await refusal(Anthropic.AuthenticationError, 401, post("mws_live_wrong", { ...bare, max_tokens: 9 }));
await refusal(Anthropic.AuthenticationError, 401, post("mws_live_wrong", bare));
const bad = await refusal(Anthropic.BadRequestError, 400, post(key, bare));
assert.match(bad.message, /max_tokens/);
const broken = { ...weather, input_schema: "not a schema" };
await refusal(Anthropic.BadRequestError, 400, post(key, { ...bare, max_tokens: 9, tools: [broken] }));
await refusal(Anthropic.APIError, 402, post(brokeKey, { ...bare, max_tokens: 9 }));
await post(slowKey, { ...bare, max_tokens: 9 }).catch((e) => assert.equal(e.status, 429));
const limited = await refusal(Anthropic.RateLimitError, 429, post(slowKey, { ...bare, max_tokens: 9 }));
checkHeaders(limited.headers);

const listed = await client().models.list({ limit: 1000 });
assert.equal(listed.data.length, 11);
assert.equal(listed.data[0].id, "dragon");
const counted = await client().messages.countTokens({ model: "dragon", messages: user("12345678") });
assert.equal(counted.input_tokens, 2);
console.log(JSON.stringify({ sdk: "@anthropic-ai/sdk", baseURL, ok: true }));

// What an application does with the OpenAI SDK for Node: run as a program against a gateway.
// Arguments: base URL, API key, key of an account without credit, key of an account with one request per minute.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, key, brokeKey, slowKey] = process.argv.slice(2);
const client = (apiKey = key) => new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const user = (content) => [{ role: "user", content }];
const create = (apiKey, body) =>
  client(apiKey).chat.completions.create({ model: "gpt-4o", messages: user("Hello"), ...body });
const six = ["limit", "remaining", "reset"].flatMap((w) => ["requests", "tokens"].map((u) => `x-ratelimit-${w}-${u}`));
const checkHeaders = (headers) => {
  for (const name of [...six, "x-request-id"]) assert.ok(headers.get(name), `no ${name}`);
};
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const question = 'call get_weather {"city": "Paris"}\ncall get_weather {"city": "Rome"}';

const { data: reply, response } = await create(key, {}).withResponse();
checkHeaders(response.headers);
assert.equal(reply.model, "gpt-4o");
assert.equal(reply.choices[0].finish_reason, "stop");
assert.ok(reply.choices[0].message.content && reply.usage.total_tokens > 0);

const rivers = { messages: user("Tell me of rivers") };
const whole = await create(key, rivers);
const folded = await client()
  .chat.completions.stream({ model: "gpt-4o", ...rivers, stream_options: { include_usage: true } })
  .finalChatCompletion();
assert.equal(folded.choices[0].message.content, whole.choices[0].message.content);
assert.equal(folded.usage.completion_tokens, whole.usage.completion_tokens);

for (const streaming of [false, true]) {
  const ask = (messages) => {
    const body = { model: "dragon", messages, tools: [weather] };
    return streaming
      ? client().chat.completions.stream(body).finalChatCompletion()
      : client().chat.completions.create(body);
  };
  const first = (await ask(user(question))).choices[0];
  const calls = first.message.tool_calls;
  assert.equal(first.finish_reason, "tool_calls");
  const inputs = calls.map((c) => JSON.parse(c.function.arguments));
  assert.deepEqual(inputs, [{ city: "Paris" }, { city: "Rome" }]);
  const second = (
    await ask([
      ...user(question),
      { role: "assistant", content: first.message.content, tool_calls: calls.map(({ id, type, function: f }) => ({ id, type, function: { name: f.name, arguments: f.arguments } })) },
      ...calls.map((c, i) => ({ role: "tool", tool_call_id: c.id, content: `21 degrees in ${inputs[i].city}` })),
    ])
  ).choices[0];
  assert.equal(second.finish_reason, "stop");
  assert.match(second.message.content, /21 degrees in Rome/);
}

const refusal = async (kind, status, promise) => {
  const error = await promise.then(() => assert.fail("expected a refusal"), (e) => e);
  assert.ok(error instanceof kind, `${error}`);
  assert.equal(error.status, status);
  return error;
};
await refusal(OpenAI.AuthenticationError, 401, create("mws_live_wrong", {}));
await refusal(OpenAI.AuthenticationError, 401, create("mws_live_wrong", { messages: [] }));
const bad = await refusal(OpenAI.BadRequestError, 400, create(key, { messages: [] }));
assert.equal(bad.param, "messages");
const broken = { type: "function", function: { name: "x", parameters: "not a schema" } };
await refusal(OpenAI.BadRequestError, 400, create(key, { tools: [broken] }));
const broke = await refusal(OpenAI.APIError, 402, create(brokeKey, {}));
assert.equal(broke.code, "insufficient_quota");
await create(slowKey, {}).catch((e) => assert.equal(e.status, 429));
const limited = await refusal(OpenAI.RateLimitError, 429, create(slowKey, {}));
checkHeaders(limited.headers);

const listed = await client().models.list();
assert.equal(listed.data.length, 11);
assert.equal(listed.data[0].id, "dragon");

const unasked = await client().embeddings.create({ model: "e", input: ["rivers", "lakes"] });
const numbers = await client().embeddings.create({ model: "e", input: ["rivers", "lakes"], encoding_format: "float" });
assert.deepEqual(
  unasked.data.map((item) => Array.from(item.embedding)),
  numbers.data.map((item) => item.embedding),
);
console.log(JSON.stringify({ sdk: "openai", baseURL, ok: true }));

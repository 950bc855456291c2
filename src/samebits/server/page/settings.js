// The settings as the fields of a request. A blank field is left out: the server's own default counts.

import { find } from "./dom.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens"];
const DEFAULTS = ["temperature", "top_p", "top_k", "min_p"];

export function showDefaults(model) {
  for (const name of DEFAULTS) {
    const value = model.default_sampling_params[name];
    if (value !== null && value !== undefined) find(name).placeholder = String(value);
  }
  find("max_tokens").max = String(model.context_length);
  find("seed").placeholder = String(model.default_seed);
  find("system").disabled = !model.has_chat_template;
}

// A seed stays text: it has 64 bits, and a number here only 53.
export function drawSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  find("seed").value = String((BigInt(high) << 32n) | BigInt(low));
}

// {path, body} for a conversation, or null when a field holds something else than it should.
export function toRequest(model, conversation) {
  if (!find("settings").reportValidity()) return null;
  const body = { stream: true, return_token_ids: true };
  for (const name of NUMBERS) {
    if (find(name).value !== "") body[name] = Number(find(name).value);
  }
  const seed = find("seed").value.trim();
  if (seed) body.seed = seed;
  const top = Number(find("top_logprobs").value);
  if (!model.has_chat_template) {
    const prompt = conversation.map((message) => message.content).join("");
    return { path: "v1/completions", body: { ...body, prompt, logprobs: top } };
  }
  const system = find("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...conversation];
  return { path: "v1/chat/completions", body: { ...body, messages, logprobs: true, top_logprobs: top } };
}

export function neighbours() {
  return Math.max(1, Number(find("neighbours").value) || 1);
}

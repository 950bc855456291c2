// One answer as it streams in: text, thoughts, and every token with its logprob.

import { events, post } from "./api.js";

export class Answer {
  constructor() {
    this.text = "";
    this.thoughts = "";
    this.tokens = []; // {id, text, logprob, top: [{text, logprob}]}
    this.finish = null;
    this.fingerprint = "";
    this.seed = null; // as the server resolved it
  }

  take(event) {
    this.fingerprint = event.system_fingerprint;
    for (const choice of event.choices) {
      this.text += choice.delta?.content ?? choice.text ?? "";
      this.thoughts += choice.delta?.reasoning_content ?? "";
      const ids = choice.token_ids ?? [];
      listed(choice.logprobs).forEach((entry, at) => this.tokens.push({ id: ids[at], ...entry }));
      this.finish = choice.finish_reason ?? this.finish;
      this.seed = choice.samebits?.seed ?? this.seed;
    }
  }
}

// Ask, and fill `answer` as it comes; `onNews()` is called after every event.
export async function ask({ path, body }, answer, signal, onNews) {
  const response = await post(path, body, signal);
  for await (const event of events(response)) {
    answer.take(event);
    onNews();
  }
}

// A chat's logprobs, or a completion's, in one shape.
function listed(logprobs) {
  if (!logprobs) return [];
  const entry = ({ token, logprob }) => ({ text: token, logprob });
  if (logprobs.content) {
    return logprobs.content.map((at) => ({ ...entry(at), top: at.top_logprobs.map(entry) }));
  }
  return logprobs.tokens.map((text, at) => ({
    text,
    logprob: logprobs.token_logprobs[at],
    top: Object.entries(logprobs.top_logprobs[at] ?? {}).map(([token, logprob]) => entry({ token, logprob })),
  }));
}

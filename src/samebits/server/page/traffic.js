// Random neighbours for a request: prompts, lengths, seeds and sampling parameters that nobody chose. They come and
// go while it runs: a connection that ends or is broken off on purpose is followed by another.

import { post } from "./api.js";

const CONNECTIONS = 3; // a browser opens six to one server at most, and the request needs one
const LONGEST_PROMPT = 160;
const LONGEST_ANSWER = 96;

export class Traffic {
  constructor(model, neighbours) {
    this.model = model;
    this.neighbours = neighbours;
    this.samples = 0; // neighbours started so far
    this.leaving = new AbortController();
  }

  // Resolves when every connection has brought its first token.
  async start() {
    const connections = Math.min(CONNECTIONS, this.neighbours);
    const share = (at) => Math.floor((this.neighbours + at) / connections);
    await Promise.all(
      Array.from({ length: connections }, (_, at) => new Promise((begun, failed) => this.keepUp(share(at), begun, failed))),
    );
  }

  stop() {
    this.leaving.abort();
  }

  async keepUp(samples, begun, failed) {
    while (!this.leaving.signal.aborted) {
      try {
        await this.send(samples, begun);
      } catch (error) {
        if (error.name !== "AbortError") {
          failed(error);
          return;
        }
      }
    }
  }

  async send(samples, begun) {
    const early = new AbortController();
    const response = await post("generate", this.body(samples), AbortSignal.any([this.leaving.signal, early.signal]));
    this.samples += samples;
    let timer = null;
    try {
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        begun();
        timer ??= setTimeout(() => early.abort(), between(1000, 6000));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  body(samples) {
    const room = Math.max(2, Math.floor(this.model.context_length / 4));
    const one = () => between(0, this.model.vocab_size - 1);
    const each = (make) => Array.from({ length: samples }, make);
    return {
      input_ids: each(() => Array.from({ length: between(1, Math.min(LONGEST_PROMPT, room)) }, one)),
      sampling_params: each(() => ({
        temperature: Math.random() < 0.25 ? 0 : Math.random() * 1.5,
        top_p: Math.random() < 0.5 ? 1 : 0.5 + Math.random() / 2,
        top_k: Math.random() < 0.5 ? -1 : between(1, 50),
        max_new_tokens: between(1, Math.min(LONGEST_ANSWER, room)),
        sampling_seed: between(0, 2 ** 31),
        ignore_eos: true,
      })),
      stream: true,
      incremental: true,
    };
  }
}

function between(least, most) {
  return least + Math.floor(Math.random() * (most - least + 1));
}

// The conversation on the screen.

import { barcode } from "./barcode.js";
import { count, words } from "./bits.js";
import { announce, find, make } from "./dom.js";
import { TokenList } from "./tokens.js";

export function showQuestion(text) {
  find("messages").append(make("li", { class: "question" }, make("div", { class: "bubble" }, text)));
  scrollDown();
}

// An answer on its way, its figures, and the second run under load.
export class AnswerView {
  constructor(answer) {
    this.answer = answer;
    this.list = new TokenList(answer);
    this.thoughts = make("div", { class: "thoughts" });
    this.text = make("div", { class: "text" });
    this.figures = make("span", { class: "figures" });
    this.again = make("button", { type: "button", class: "again", hidden: true }, "Run again under load");
    this.verdict = make("div", { class: "verdict", hidden: true });
    this.element = make(
      "li",
      { class: "answer", "aria-busy": "true" },
      this.thoughts,
      this.text,
      this.list.element,
      make("div", { class: "under" }, this.figures, this.again),
      this.verdict,
    );
    find("messages").append(this.element);
    this.started = performance.now();
    scrollDown();
  }

  update() {
    this.thoughts.textContent = this.answer.thoughts;
    this.text.textContent = this.answer.text;
    this.list.update();
    scrollDown();
  }

  // The answer is whole; `onAgain` runs it once more.
  finish(onAgain) {
    const { tokens, seed, fingerprint, finish } = this.answer;
    const seconds = (performance.now() - this.started) / 1000;
    this.element.removeAttribute("aria-busy");
    this.figures.textContent = `${tokens.length} tokens · seed ${seed} · ${finish} · ${seconds.toFixed(1)} s`;
    this.figures.title = fingerprint;
    this.again.hidden = tokens.length === 0;
    this.again.addEventListener("click", onAgain);
    announce(`The answer has ${tokens.length} tokens.`);
  }

  fail(message) {
    this.element.removeAttribute("aria-busy");
    this.figures.replaceChildren(make("span", { class: "error", role: "alert" }, message));
    scrollDown();
  }

  // The second run: how far it is.
  progress(text) {
    this.again.disabled = true;
    this.verdict.hidden = false;
    this.verdict.className = "verdict running";
    this.verdict.replaceChildren(make("p", {}, make("span", { class: "spinner" }), text));
    scrollDown();
  }

  // The second run is over, with `result` of `compare` and the number of samples that it ran among.
  conclude(second, result, company) {
    const equal = result.difference === null;
    const beside = company.samples === 1 ? "1 random sample" : `${company.samples} random samples`;
    const batch = company.most > 1 ? `, up to ${company.most} in the batch at once` : "";
    const title = equal ? "Every bit came back the same." : "The answers differ.";
    const compared = `${result.tokens} token ids and ${result.logprobs} float32 logprobs compared, beside ${beside}${batch}.`;
    this.verdict.className = `verdict ${equal ? "equal" : "different"}`;
    this.verdict.replaceChildren(
      make("p", {}, make("strong", {}, title), ` ${equal ? "" : `First difference: ${result.difference}. `}${compared}`),
      pictures(this.answer, second),
    );
    this.again.disabled = false;
    announce(`${title} ${compared}`);
    scrollDown();
  }

  giveUp(message) {
    this.verdict.className = "verdict different";
    this.verdict.replaceChildren(make("p", { role: "alert" }, `The second run failed: ${message}`));
    this.again.disabled = false;
  }
}

function pictures(first, second) {
  const [left, right] = [words(first), words(second)];
  const length = Math.max(left.length, right.length);
  const changed = Array.from({ length }, (_, at) => ((left[at] ?? 0) ^ (right[at] ?? 0)) >>> 0);
  const bits = changed.reduce((sum, word) => sum + count(word), 0);
  const columns = changed.filter(Boolean).length;
  const row = (name, picture) => make("figure", {}, make("figcaption", {}, name), picture);
  return make(
    "div",
    { class: "pictures" },
    row("alone", barcode(left, `Bits of ${left.length} logprobs, run alone`, "bits")),
    row("under load", barcode(right, `Bits of ${right.length} logprobs, run under load`, "bits")),
    row(`difference: ${bits} bits`, barcode(changed, `${bits} bits of ${columns} logprobs differ`, "difference")),
  );
}

function scrollDown() {
  const area = find("scroll");
  if (area.scrollHeight - area.scrollTop - area.clientHeight < 240) area.scrollTop = area.scrollHeight;
}

// Tokens coloured by their logprob, and what is shown of the one that is pointed at or reached by the arrow keys.

import { bitsOf, hex } from "./bits.js";
import { find, make } from "./dom.js";

const SURPRISING = 5; // nats: a token of probability e^-5 and below has the full colour

// A list of tokens. One tab stop; arrow keys, Home and End go from token to token.
export class TokenList {
  constructor(answer) {
    this.answer = answer;
    this.element = make("div", { class: "tokens", role: "group", "aria-label": "Tokens; arrow keys go through them" });
    this.element.addEventListener("pointerover", (event) => this.point(event.target));
    this.element.addEventListener("pointerleave", hide);
    this.element.addEventListener("focusin", (event) => this.point(event.target));
    this.element.addEventListener("focusout", hide);
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  // Show the tokens that have come since the last call.
  update() {
    const shown = this.element.children.length;
    this.answer.tokens.slice(shown).forEach((token, at) => this.element.append(drawn(token, shown + at)));
  }

  point(element) {
    const token = this.answer.tokens[element.dataset?.at];
    if (token) inspect(element, token, Number(element.dataset.at));
  }

  move(event) {
    const cells = this.element.children;
    const at = Number(event.target.dataset.at);
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cells.length - 1 }[event.key];
    if (target === undefined || !cells[target]) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    cells[target].tabIndex = 0;
    cells[target].focus();
  }
}

function drawn(token, at) {
  const label = `${JSON.stringify(token.text)}, logprob ${token.logprob.toFixed(3)}`;
  const cell = make("span", { class: "token", "data-at": at, tabindex: at ? -1 : 0, "aria-label": label }, visible(token.text));
  const surprise = Math.min(1, -token.logprob / SURPRISING);
  cell.style.setProperty("--heat", `${Math.round(100 * Math.sqrt(surprise))}%`);
  if (token.text.startsWith("<|") || token.text.startsWith("bytes:")) cell.classList.add("special");
  return cell;
}

// A line's end is a token like any other: it is shown, and breaks the line.
function visible(text) {
  return text.replaceAll("\n", "⏎\n");
}

function inspect(element, token, at) {
  const card = find("inspector");
  const rows = [
    ["token", `${at}, id ${token.id}`],
    ["logprob", token.logprob.toPrecision(9)], // as many digits as tell every float32 from its neighbours
    ["float32", hex(bitsOf(token.logprob))],
    ["probability", percent(token.logprob)],
  ];
  const facts = make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  card.replaceChildren(make("code", { class: "shown" }, quoted(token.text)), facts, alternatives(token));
  card.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), innerWidth - card.offsetWidth - 8);
  const below = box.bottom + 6;
  const top = below + card.offsetHeight < innerHeight ? below : box.top - card.offsetHeight - 6;
  card.style.left = `${left}px`;
  card.style.top = `${Math.max(8, top)}px`;
}

function alternatives(token) {
  const rows = token.top.map((entry) => {
    const bar = make("i", { class: "meter" });
    bar.style.setProperty("--share", `${100 * Math.exp(entry.logprob)}%`);
    const chosen = entry.text === token.text;
    return make(
      "li",
      { class: chosen ? "chosen" : null },
      make("code", {}, quoted(entry.text)),
      bar,
      make("span", {}, percent(entry.logprob)),
    );
  });
  return make("ul", {}, ...rows);
}

function quoted(text) {
  return text.replaceAll("\n", "\\n").replace(/^ | $/g, "␣");
}

function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return `${value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)} %`;
}

export function hide() {
  find("inspector").hidden = true;
}

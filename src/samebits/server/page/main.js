// The page: one conversation with one model.

import { Answer, ask } from "./answer.js";
import { getJson, onKeyNeeded } from "./api.js";
import { compare } from "./bits.js";
import { announce, find, make } from "./dom.js";
import { AnswerView, showQuestion } from "./messages.js";
import { drawSeed, neighbours, showDefaults, toRequest } from "./settings.js";
import { hide } from "./tokens.js";
import { Traffic } from "./traffic.js";

const THEMES = ["auto", "light", "dark"];
const LOOK_MILLISECONDS = 200; // how often the server is asked how many samples run
const EXAMPLES = {
  bundled: [
    "Tom has 3 boxes with 4 eggs each. He eats 2. How many are left?",
    "What does the module json do?",
    "Anna buys 7 pens for 2 euros each and pays with 20 euros. How much does she get back?",
  ],
  other: ["Tell me something that few people know.", "Write a haiku about order.", "Why is the sky blue?"],
};

let model = null;
let conversation = []; // what was said so far, as the server's messages
let current = null; // the AbortController of the answer on its way

async function start() {
  chooseTheme(localStorage.getItem("samebits-theme") ?? "auto");
  wire();
  onKeyNeeded(showKeyDialog);
  try {
    model = await getJson("model_info");
  } catch (error) {
    find("model").textContent = "not ready";
    find("welcome").append(make("p", { class: "error", role: "alert" }, `${error.message}. Reload the page to try again.`));
    return;
  }
  find("model").textContent = model.served_model_name;
  find("fingerprint").textContent = model.fingerprint;
  document.title = `${model.served_model_name} · Samebits`;
  showDefaults(model);
  showExamples();
}

function wire() {
  find("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && (hide(), current?.abort()));
  find("stop").addEventListener("click", () => current?.abort());
  find("dice").addEventListener("click", drawSeed);
  find("fresh").addEventListener("click", forget);
  find("fingerprint").addEventListener("click", copyFingerprint);
  find("scroll").addEventListener("scroll", hide);
  find("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(find("theme").dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("samebits-theme", next);
    chooseTheme(next);
  });
  find("token-view").addEventListener("click", (event) => {
    const on = document.body.classList.toggle("plain");
    event.currentTarget.setAttribute("aria-pressed", String(!on));
  });
}

async function send() {
  await started; // who is quicker than the server does not lose a message
  const text = find("prompt").value;
  if (!model || current || !text.trim()) return;
  const question = { role: "user", content: text };
  const request = toRequest(model, [...conversation, question]);
  if (!request) return;
  find("welcome").hidden = true;
  find("prompt").value = "";
  showQuestion(text);
  await run(async (signal) => {
    const answer = new Answer();
    const view = new AnswerView(answer);
    try {
      await ask(request, answer, signal, () => view.update());
      conversation.push(question, { role: "assistant", content: answer.text });
      view.finish(() => again(request, view));
    } catch (error) {
      view.fail(signal.aborted ? "stopped" : error.message);
    }
  });
}

// The same request once more, with the seed that the first one had, in the middle of traffic.
async function again(request, view) {
  if (current) return;
  const repeated = { ...request, body: { ...request.body, seed: view.answer.seed } };
  const traffic = new Traffic(model, neighbours());
  await run(async (signal) => {
    const company = { samples: 0, most: 0 };
    const stopLooking = watchBatch(company);
    signal.addEventListener("abort", () => traffic.stop());
    try {
      view.progress("waiting until the traffic runs…");
      await traffic.start();
      const second = new Answer();
      await ask(repeated, second, signal, () => {
        const batch = company.most > 1 ? `, ${company.most} samples in the batch` : "";
        view.progress(`running again: ${second.tokens.length} of ${view.answer.tokens.length} tokens${batch}`);
      });
      company.samples = traffic.samples;
      view.conclude(second, compare(view.answer, second), company);
    } catch (error) {
      view.giveUp(signal.aborted ? "stopped" : error.message);
    } finally {
      traffic.stop();
      stopLooking();
    }
  });
}

// Keeps `company.most` at the largest number of samples that the engine was seen to run at once.
function watchBatch(company) {
  const look = async () => {
    try {
      const { engine } = await getJson("server_info");
      company.most = Math.max(company.most, engine.running);
    } catch {
      // a figure for people: the comparison does not need it
    }
  };
  const timer = setInterval(look, LOOK_MILLISECONDS);
  return () => clearInterval(timer);
}

// One thing at a time: `work(signal)` may be stopped.
async function run(work) {
  current = new AbortController();
  find("send").hidden = true;
  find("stop").hidden = false;
  try {
    await work(current.signal);
  } finally {
    current = null;
    find("send").hidden = false;
    find("stop").hidden = true;
    find("prompt").focus({ preventScroll: true });
  }
}

function forget() {
  current?.abort();
  conversation = [];
  find("messages").replaceChildren();
  find("welcome").hidden = false;
  find("prompt").focus();
}

function showExamples() {
  const texts = EXAMPLES[model.model_path.startsWith("bundled") ? "bundled" : "other"];
  for (const text of texts) {
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => {
      find("prompt").value = text;
      send();
    });
    find("examples").append(button);
  }
}

function showKeyDialog(refused) {
  find("key-error").hidden = !refused;
  find("key").value = "";
  find("key-dialog").showModal();
  return new Promise((resolve) => {
    find("key-dialog").oncancel = (event) => event.preventDefault();
    find("key-form").onsubmit = (event) => {
      event.preventDefault();
      find("key-dialog").close();
      resolve(find("key").value.trim());
    };
  });
}

function chooseTheme(theme) {
  const button = find("theme");
  button.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
  document.documentElement.style.colorScheme = theme === "auto" ? "light dark" : theme;
}

async function copyFingerprint() {
  try {
    await navigator.clipboard.writeText(model.fingerprint);
    announce("The fingerprint is copied.");
    find("fingerprint").classList.add("copied");
    setTimeout(() => find("fingerprint").classList.remove("copied"), 1200);
  } catch {
    announce("The browser did not allow to copy.");
  }
}

const started = start();

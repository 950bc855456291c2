// Speaking with the server: JSON, streams of events, and the key that it may ask for.

const KEY_NAME = "samebits-key";
let askForKey = async () => "";
let asking = null;

export class ServerError extends Error {}

// `ask(refused)` shows the dialog and resolves to a key; `refused` says that one was tried already.
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export async function getJson(path) {
  const response = await request(path, {});
  return response.json();
}

export async function post(path, body, signal) {
  return request(path, { method: "POST", body: JSON.stringify(body), signal });
}

// The objects of a stream of events up to its end mark. Leaving early closes the connection.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ServerError("the stream broke off before its end");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.slice("data: ".length);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function request(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY_NAME);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.status === 401) {
      await replaceKey(key);
      continue;
    }
    if (!response.ok) throw new ServerError(await reason(response));
    return response;
  }
}

// Several requests may be refused at once: the dialog is shown once for all of them.
async function replaceKey(refused) {
  if (sessionStorage.getItem(KEY_NAME) !== refused) return;
  asking ??= askForKey(refused !== null).finally(() => (asking = null));
  sessionStorage.setItem(KEY_NAME, await asking);
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

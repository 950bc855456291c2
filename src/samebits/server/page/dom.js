// Elements. Text is only ever set as text: nothing that a model says can become markup.

export const find = (id) => document.getElementById(id);

// make("button", {type: "button", class: "chip"}, "Copy", otherElement)
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Said by screen readers, and by nobody else.
export function announce(text) {
  find("status").textContent = text;
}

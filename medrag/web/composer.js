// Where questions are typed.

import { byId } from "./elements.js";

const MOST_CHARACTERS = 2000;
const field = byId("question");
const touched = matchMedia("(pointer: coarse)");

/** `send` is called with a question that may be asked; it says whether it was taken. */
export function prepare(send) {
  function submit() {
    if (!allowed(field.value) || !send(field.value.trim())) return;
    fill("");
    if (touched.matches) goOn();
  }
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  field.addEventListener("input", show);
  field.addEventListener("keydown", (event) => {
    // An input method takes Enter for itself. Safari ends the composition first and tells by 229 alone.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  show();
}

export function fill(text) {
  field.value = text;
  show();
}

export function busy(is) {
  const held = document.activeElement;
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  if (held === byId("send") || held === byId("stop")) goOn(); // the button that had the focus is gone
}

/** Put the focus where one goes on: on a phone not into the field, whose keyboard would cover the answer. */
export function goOn() {
  (touched.matches ? byId("conversation") : field).focus();
}

function allowed(text) {
  return text.trim() !== "" && length(text) <= MOST_CHARACTERS;
}

/** Characters as the server counts them: a rare Han character is one, not two. */
function length(text) {
  return [...text.trim()].length;
}

function show() {
  const over = length(field.value) - MOST_CHARACTERS;
  const count = byId("count");
  count.textContent = over > 0 ? `超出 ${over} 字，最多 ${MOST_CHARACTERS} 字` : `${length(field.value)} / ${MOST_CHARACTERS}`;
  count.classList.toggle("over", over > 0);
  field.setAttribute("aria-invalid", String(over > 0));
  byId("send").disabled = !allowed(field.value);
  field.style.height = "auto"; // as high as its text; the style sheet says how high at most
  field.style.height = `${field.scrollHeight + 2}px`;
}

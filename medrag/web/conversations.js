// Earlier conversations: {id, began (ms since 1970), turns: [{response, verdict}]}, newest first.
// Kept is what the server answered, whose question has personal data replaced, not what was typed.

import { read, write } from "./storage.js";

const KEY = "medrag.conversations";
const MOST = 50;

export function all() {
  const kept = read(KEY, []);
  const whole = ({ turns }) => turns.length > 0 && turns.every(({ response }) => typeof response.question === "string");
  try {
    return kept.filter(whole);
  } catch {
    return []; // of another version, or touched by hand
  }
}

export function begin() {
  return { id: Date.now().toString(36) + Math.random().toString(36).slice(2), began: Date.now(), turns: [] };
}

/** Read anew each time: another tab may have written. Where there is no room, the oldest make place. */
export function save(conversation) {
  const kept = [conversation, ...all().filter(({ id }) => id !== conversation.id)].slice(0, MOST);
  while (!write(KEY, kept) && kept.length > 1) kept.pop();
}

export function remove(id) {
  write(KEY, all().filter((one) => one.id !== id));
}

export function clear() {
  write(KEY, []);
}

export function title({ turns }) {
  return turns[0].response.question;
}

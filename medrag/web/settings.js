// Which method answers, and how many passages are shown. Nothing chosen: the server decides.

import { byId, element } from "./elements.js";
import { methods } from "./service.js";
import { read, write } from "./storage.js";

const KEY = "medrag.settings";
const MOST_PASSAGES = 20;

export function settings() {
  return { method: byId("method").value, k: byId("passages").value };
}

export async function prepare() {
  const kept = read(KEY, {});
  for (const id of ["method", "passages"]) byId(id).addEventListener("change", () => write(KEY, settings()));
  for (let count = 1; count <= MOST_PASSAGES; count++) byId("passages").append(element("option", { value: count }, `${count} 条`));
  choose("passages", kept.k);
  const names = await methods();
  for (const name of names) byId("method").append(element("option", { value: name }, name));
  byId("methods").hidden = names.length < 2;
  choose("method", kept.method);
}

/** What is no longer offered is not chosen. */
function choose(id, value) {
  const field = byId(id);
  if ([...field.options].some((option) => option.value === value)) field.value = value;
}

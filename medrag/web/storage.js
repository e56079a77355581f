// Values kept in this browser; where nothing may be stored, they last as long as the page.

const memory = new Map();

export function read(key, otherwise) {
  if (memory.has(key)) return memory.get(key);
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Whether the value could be stored. If not, it is remembered here. */
export function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    memory.delete(key);
    return true;
  } catch {
    memory.set(key, value);
    return false;
  }
}

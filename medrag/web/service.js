// The server: questions, feedback, methods. Whatever goes wrong becomes a Failure.

import { events } from "./sse.js";

// Without the name and password that an address may carry: fetch refuses those.
const HERE = new URL(".", location.origin + location.pathname);
const HISTORY_ENTRIES = 20;
const HISTORY_CHARACTERS = 8000;
const BODY_BYTES = 240_000; // the server takes 256 KB

/** `status`: of HTTP; 0: not reached; -1: the answer broke off; -2: an error within the stream. `seconds`: wait so long before asking again. */
export class Failure extends Error {
  constructor(status, said = "", seconds = 0) {
    super(said || `status ${status}`);
    Object.assign(this, { status, said, seconds });
  }
}

/** The response to a question. `piece` gets text to be shown meanwhile; the response stands, the pieces do not. */
export async function ask({ question, turns, k, method }, signal, piece) {
  const body = { question, history: history(turns), stream: true };
  if (k) body.k = Number(k);
  if (method) body.method = method;
  while (body.history.length && bytes(body) > BODY_BYTES) body.history.splice(0, 2);
  const reply = await send("v1/answers", body, signal);
  try {
    for await (const { name, data } of events(reply.body)) {
      if (name === "piece") piece(JSON.parse(data).text);
      if (name === "answer") return JSON.parse(data);
      if (name === "error") throw new Failure(-2, JSON.parse(data).error.message);
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure(-1);
  }
  throw new Failure(-1);
}

export async function feedback({ id, method, versions }, verdict) {
  await send("v1/feedback", { id, verdict, method, versions });
}

/** Names of the methods that answer; none where the server does not say. */
export async function methods() {
  try {
    const reply = await fetch(new URL("v1/models", HERE));
    return reply.ok ? (await reply.json()).data.map((model) => String(model.id)) : [];
  } catch {
    return [];
  }
}

async function send(path, body, signal) {
  let reply;
  try {
    reply = await fetch(new URL(path, HERE), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure(0);
  }
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => ({})); // a proxy's error page is no JSON
  const said = told?.error?.message;
  throw new Failure(reply.status, typeof said === "string" ? said : "", wait(reply.headers.get("Retry-After")));
}

/** What was said before, oldest first, as much as the server takes. Characters are counted as it counts them, not as UTF-16 does. */
function history(turns) {
  const said = turns.flatMap(({ response }) => [
    { role: "user", content: response.question },
    { role: "assistant", content: response.answer },
  ]);
  return said.slice(-HISTORY_ENTRIES).map(({ role, content }) => ({ role, content: [...content].slice(0, HISTORY_CHARACTERS).join("") }));
}

const bytes = (body) => new TextEncoder().encode(JSON.stringify(body)).length;

/** Seconds of a Retry-After header: a number, or else nothing is known. */
function wait(header) {
  const seconds = Number(header);
  return seconds > 0 ? Math.min(Math.ceil(seconds), 3600) : 0;
}

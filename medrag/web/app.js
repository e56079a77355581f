// The page: a conversation, the question that is being answered, and what the buttons do.

import * as composer from "./composer.js";
import * as conversations from "./conversations.js";
import * as drawers from "./drawers.js";
import { announce, byId } from "./elements.js";
import { fitKeyboard, follow } from "./screen.js";
import { ask, Failure } from "./service.js";
import * as settings from "./settings.js";
import { turn } from "./turn.js";

let conversation = conversations.begin();
let running = null; // what aborts the question that is being answered

/** Ask; whether the question was taken. `instead` is the turn of an earlier try, which goes. */
function send(question, instead) {
  if (running) return false;
  const within = conversation;
  const aborter = new AbortController();
  const shown = turn(question);
  running = aborter;
  instead?.remove();
  byId("welcome").hidden = true;
  byId("turns").append(shown.node);
  follow(shown.node, true);
  composer.busy(true);
  announce("正在作答");
  answer(question, within, shown, aborter).finally(() => {
    if (running !== aborter) return; // another conversation was opened meanwhile
    running = null;
    composer.busy(false);
  });
  return true;
}

async function answer(question, within, shown, aborter) {
  const again = () => send(question, shown.node);
  try {
    const { method, k } = settings.settings();
    const response = await ask({ question, turns: within.turns, method, k }, aborter.signal, (text) => {
      shown.piece(text);
      follow(shown.node);
    });
    const entry = { response, verdict: "" };
    shown.finish(entry, () => conversations.save(within));
    within.turns.push(entry);
    conversations.save(within);
    remember(within);
    if (!response.flags.emergency) announce(response.refused ? `没有作答。${response.answer}` : `回答：${response.answer}`);
  } catch (error) {
    if (aborter.signal.aborted) return shown.stop(again);
    if (!(error instanceof Failure)) console.error(error);
    shown.fail(error instanceof Failure ? error : new Failure(-2), {
      retry: again,
      edit: () => {
        composer.fill(question);
        byId("question").focus();
      },
    });
  }
  follow(shown.node);
}

function show(other) {
  running?.abort();
  running = null;
  composer.busy(false);
  conversation = other;
  remember(other);
  byId("turns").replaceChildren(
    ...other.turns.map((entry) => {
      const shown = turn(entry.response.question);
      shown.finish(entry, () => conversations.save(other));
      return shown.node;
    }),
  );
  byId("welcome").hidden = other.turns.length > 0;
  byId("conversation").scrollTop = 0;
}

/** For this tab's next reload; unlike sessionStorage this is never forbidden. */
function remember({ id }) {
  history.replaceState({ open: id }, "");
}

function begin() {
  show(conversations.begin());
  byId("question").focus();
}

function drawHistory() {
  const list = conversations.all().map((one) => ({ ...one, title: conversations.title(one) }));
  drawers.drawConversations(list, {
    show(one) {
      byId("history").close();
      show(conversations.all().find(({ id }) => id === one.id) ?? conversations.begin());
    },
    remove(one) {
      conversations.remove(one.id);
      if (one.id === conversation.id) show(conversations.begin());
      drawHistory();
      byId("history").querySelector(".close").focus(); // what had the focus is gone
      announce("已删除");
    },
  });
}

drawers.prepare();
composer.prepare((question) => send(question));
settings.prepare();
fitKeyboard();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // a step to #question would forget which conversation is open
  byId("question").focus();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", begin);
byId("open-settings").addEventListener("click", (event) => drawers.open(byId("settings"), event.currentTarget));
byId("open-history").addEventListener("click", (event) => {
  drawHistory();
  drawers.open(byId("history"), event.currentTarget);
});
byId("clear").addEventListener("click", () => {
  if (!confirm("删除这个浏览器里的全部对话？删除后不能恢复。")) return;
  conversations.clear();
  show(conversations.begin());
  drawHistory();
  byId("history").querySelector(".close").focus();
});
for (const example of byId("examples").querySelectorAll("button")) {
  example.addEventListener("click", () => send(example.textContent) && composer.goOn());
}
const open = conversations.all().find(({ id }) => id === history.state?.open);
if (open) show(open);

// One question and what came of it: pieces while it is written, then a response, a failure, or that it was stopped.

import { draw } from "./answer.js";
import { announce, button, call, element, icon } from "./elements.js";
import * as service from "./service.js";
import { asText, failure, mayRetry } from "./words.js";

export function turn(question) {
  const asked = element("p", { class: "told" }, question);
  const written = element("p", { class: "told writing" });
  const outcome = element("div", { class: "outcome", "aria-busy": "true" }, element("p", { class: "waiting" }, "正在查找资料并作答…"));
  const node = element("article", { class: "turn" }, element("div", { class: "asked" }, element("h2", { class: "unseen" }, "问"), asked), outcome);

  function settle(...children) {
    outcome.removeAttribute("aria-busy");
    outcome.replaceChildren(...children);
  }

  return {
    node,
    piece(text) {
      if (!written.isConnected) outcome.replaceChildren(written);
      written.append(text);
    },
    /** `entry`: {response, verdict}; `kept` is called when its verdict changes. */
    finish(entry, kept) {
      asked.textContent = entry.response.question;
      settle(draw(entry.response), tools(entry, kept));
    },
    fail(reason, { retry, edit }) {
      settle(broken(reason, retry, edit));
    },
    /** What was written so far is no answer: it was not checked to its end. */
    stop(again) {
      const rest = written.isConnected ? [element("div", { class: "stopped" }, written)] : [];
      written.classList.remove("writing");
      settle(...rest, element("p", { class: "note" }, "已停止。以上内容不完整，也没有核对完，请不要采用。"), tray(button("重新提问", { onclick: again })));
      if (!rest.length) outcome.querySelector(".note").textContent = "已停止，没有得到回答。";
      announce("已停止");
    },
  };
}

function tray(...children) {
  return element("div", { class: "tray" }, ...children);
}

function tools(entry, kept) {
  const said = element("span", { class: "small said", role: "status" });
  const copy = button("复制", { onclick: async () => (said.textContent = (await copied(asText(entry.response))) ? "已复制" : "复制失败，请手动选取") }, icon("copy"));
  const thumbs = { up: "有帮助", down: "没帮助" };
  const buttons = Object.entries(thumbs).map(([verdict, words]) => {
    const made = button(words, { class: `thumb ${verdict}` }, icon("thumb"));
    made.addEventListener("click", () => judge(verdict));
    return [verdict, made];
  });

  function show() {
    for (const [verdict, made] of buttons) made.setAttribute("aria-pressed", String(entry.verdict === verdict));
  }

  async function judge(verdict) {
    if (verdict === entry.verdict) return;
    const before = entry.verdict;
    entry.verdict = verdict;
    said.textContent = "";
    show();
    try {
      await service.feedback(entry.response, verdict);
      said.textContent = "谢谢，已记下";
      kept();
    } catch {
      if (entry.verdict === verdict) entry.verdict = before; // unless the other one was pressed meanwhile
      said.textContent = "评价没有送达，请稍后再试";
      show();
    }
  }

  show();
  return tray(copy, ...buttons.map(([, made]) => made), said);
}

/** Whether the text is on the clipboard. navigator.clipboard is missing where a page comes without TLS from another machine. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element("textarea", { class: "unseen" });
    const before = document.activeElement;
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    before?.focus();
    return done;
  }
}

function broken(reason, retry, edit) {
  const again = mayRetry(reason) ? button("重试", { class: "retry", onclick: retry }) : button("修改问题", { onclick: edit });
  if (again.classList.contains("retry") && reason.seconds) countDown(again, reason.seconds);
  return element(
    "section",
    { class: "card broken" },
    element("h3", {}, icon("broken"), "没有得到回答"),
    element("p", { role: "alert" }, failure(reason), reason.seconds > 0 && `请等 ${reason.seconds} 秒再试。`),
    reason.said && element("p", { class: "small told" }, `服务的说明：${reason.said}`),
    element("p", {}, "如情况紧急，请立即拨打 ", call("120", "120"), "。"),
    tray(again, reason.status === 401 && button("重新载入页面", { onclick: () => location.reload() })),
  );
}

/** The button waits with its seconds in its words. They are outside of the alert, which would be read out each second. */
function countDown(again, seconds) {
  const end = Date.now() + seconds * 1000;
  const timer = setInterval(show, 250);
  function show() {
    const left = Math.ceil((end - Date.now()) / 1000);
    again.disabled = left > 0;
    again.textContent = left > 0 ? `重试（${left} 秒后）` : "重试";
    if (left <= 0) clearInterval(timer);
  }
  show();
}

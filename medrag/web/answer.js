// A response of the server, drawn.

import { openPassage } from "./drawers.js";
import { button, call, element, icon } from "./elements.js";
import { notes, reason } from "./words.js";

const LEVELS = { 较高: 3, 中等: 2, 较低: 1 };

export function draw(response) {
  if (response.flags.emergency) return emergency(response);
  if (response.refused) return refusal(response);
  return answer(response);
}

function emergency({ answer: advice, flags }) {
  const calls = [call("120", "拨打 120 急救电话", { class: "call" })];
  if (flags.emergency === "self_harm") calls.push(call("12356", "拨打 12356 心理援助热线", { class: "call" }));
  for (const one of calls) one.prepend(icon("phone"));
  return element(
    "section",
    { class: "card emergency", role: "alert" },
    element("h3", {}, icon("alert"), "可能是紧急情况，请立即求助"),
    element("p", { class: "told" }, advice),
    element("p", { class: "calls" }, ...calls),
    ...told(flags),
  );
}

function refusal({ answer: words, reason: code, flags, passages }) {
  const barred = code === "prescription";
  return element(
    "section",
    { class: barred ? "card barred" : "card refused" },
    element("h3", {}, icon(barred ? "forbidden" : "question"), barred ? "不提供处方" : "没有作答"),
    element("p", { class: "reason" }, reason(code)),
    element("p", { class: "told" }, words),
    ...told(flags),
    evidence(passages, new Set(), "找到的资料（不足以作答，仅供参考）"),
  );
}

function answer({ sentences, passages, confidence, certainty, flags, method, versions }) {
  const cited = new Set();
  const body = element("p", { class: "told body" });
  for (const { text, passage } of sentences) {
    const said = text.trimEnd(); // a mark stands before the line break, not after it
    const found = passages[passage - 1];
    if (found) cited.add(passage);
    const mark = found ? citation(found, passage) : element("span", { class: "unsupported" }, "〔无依据〕");
    body.append(element("span", { class: found ? "sentence" : "sentence bare" }, said, mark), text.slice(said.length));
  }
  return element(
    "section",
    { class: "card" },
    body,
    certainty && sure(certainty, confidence),
    ...told(flags),
    evidence(passages, cited, "资料"),
    element("p", { class: "small versions" }, [`方法 ${method}`, `模型 ${versions.model}`, `资料库 ${versions.index}`].join(" · ")),
  );
}

function citation(passage, number) {
  const words = `[${number}] 依据${passage.title ? `：${passage.title}` : ""}`;
  const made = button(`[${number}]`, { class: "citation", "aria-label": words, "aria-haspopup": "dialog" });
  made.addEventListener("click", () => openPassage(passage, number, made));
  return made;
}

/** In words, since a number would look more exact than it is; who wants it finds it in the title. */
function sure(certainty, confidence) {
  const dots = [1, 2, 3].map((level) => element("i", { class: level <= (LEVELS[certainty] ?? 0) ? "dot full" : "dot" }));
  return element(
    "p",
    { class: "sure", title: `校准后的置信度 ${confidence.toFixed(2)}（0 到 1）` },
    element("span", { class: "dots", "aria-hidden": "true" }, ...dots),
    `把握${certainty}`,
  );
}

function told(flags) {
  return notes(flags).map((words) => element("p", { class: "note told" }, words));
}

function evidence(passages, cited, heading) {
  if (!passages.length) return null;
  const rows = passages.map((passage, place) => {
    const number = place + 1;
    const row = element(
      "button",
      { type: "button", class: "passage", "aria-haspopup": "dialog" },
      element("span", { class: "number" }, `[${number}]`),
      element("span", { class: "told clipped" }, passage.title || passage.text),
      element("span", { class: "small told clipped" }, cited.has(number) ? `已引用 · ${passage.source}` : passage.source),
    );
    row.addEventListener("click", () => openPassage(passage, number, row));
    return element("li", {}, row);
  });
  return element("div", { class: "evidence" }, element("h4", {}, heading), element("ul", {}, ...rows));
}

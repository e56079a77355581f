// Panels at the side. They are modal dialogs of the browser: it keeps the focus inside, and Esc closes them.

import { byId, element } from "./elements.js";

/** `opener` gets the focus back; where it is gone by then, the question does. */
export function open(dialog, opener) {
  dialog.addEventListener("close", () => (opener?.isConnected ? opener : byId("question")).focus(), { once: true });
  dialog.showModal();
  dialog.querySelector(".inside").scrollTop = 0;
}

export function prepare() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // beside the panel: its content covers it whole
    });
  }
}

export function openPassage(passage, number, opener) {
  byId("passage-heading").textContent = `依据 [${number}]`;
  byId("passage-title").textContent = passage.title;
  byId("passage-title").hidden = !passage.title;
  byId("passage-text").textContent = passage.text;
  byId("passage-source").textContent = passage.source;
  byId("passage-id").textContent = passage.id;
  open(byId("passage"), opener);
}

/** The list of earlier conversations, drawn anew whenever it changes. */
export function drawConversations(list, { show, remove }) {
  const now = byId("conversations");
  now.replaceChildren(
    ...list.map((one) => {
      const day = new Date(one.began).toLocaleString("zh-CN", { month: "long", day: "numeric", hour: "2-digit", minute: "2-digit" });
      return element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: "conversation", onclick: () => show(one) },
          element("span", { class: "told clipped" }, one.title),
          element("span", { class: "small" }, `${day} · ${one.turns.length} 个问题`),
        ),
        element("button", { type: "button", class: "delete", "aria-label": `删除：${one.title}`, onclick: () => remove(one) }, "删除"),
      );
    }),
  );
  byId("no-conversations").hidden = list.length > 0;
  byId("clear").hidden = list.length === 0;
}

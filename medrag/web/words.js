// What the server says in codes, and what goes wrong, in plain Chinese.

export const LABEL = "AI 生成，仅供参考，不能替代医生诊断";

const REASONS = {
  no_answer: "没有得出能用的答案。",
  unsupported_dose: "答案里的用量找不到资料支持，所以没有显示。",
  weak_evidence: "找到的资料不够可靠，不足以回答这个问题。",
  prescription: "开药和定用量要由医生当面诊断后决定，本服务不开处方。",
};

export function reason(code) {
  return REASONS[code] ?? "这个问题没有作答。";
}

/** What was left out of question and answer, a sentence each. */
export function notes({ redacted = {}, withheld = {}, follow_up: followUp }) {
  const told = [];
  const hidden = Object.entries(redacted).map(([kind, count]) => `${kind} ${count} 处`);
  if (hidden.length) told.push(`问题中的个人信息已隐去：${hidden.join("，")}。`);
  for (const [why, count] of Object.entries(withheld)) {
    told.push(why === "dose" ? `有 ${count} 句写到用量而没有资料支持，未显示。` : `有 ${count} 句未显示（${why}）。`);
  }
  if (followUp) told.push("已联系前面的对话来理解这个问题。");
  return told;
}

const FAILURES = {
  "-2": "回答途中服务出了错。",
  "-1": "连接中断，回答没有传完。",
  0: "连不上服务。请检查网络，然后重试。",
  401: "需要访问口令，或口令不对。请重新载入页面，在浏览器询问时填写口令（用户名可以不填）。",
  403: "服务不接受从这个地址来的访问。",
  408: "网络太慢，问题没有传完。请重试。",
  413: "发送的内容太长（前面的对话会一起发送）。请缩短问题，或开始新对话再问。",
  422: "这个问题服务没法接受，请修改后再问。",
  429: "现在提问的人较多，服务忙不过来。",
  503: "服务还没有准备好。",
  504: "等得太久，这个问题没能按时答完。可以重试，或把问题说得简短些。",
};

export function failure({ status }) {
  return FAILURES[status] ?? `服务出错了（状态 ${status}）。请稍后重试。`;
}

/** Whether the same question may well be answered when it is asked again. */
export function mayRetry({ status }) {
  return status <= 0 || status === 408 || status === 429 || status >= 500;
}

/** A response as text to be passed on: its citations and the label go along. */
export function asText({ question, answer, sentences, passages, certainty, label }) {
  const cited = new Set(sentences.map(({ passage }) => passage).filter((number) => passages[number - 1]));
  const body = sentences.length
    ? sentences.map(({ text, passage }) => marked(text, cited.has(passage) ? `[${passage}]` : "〔无依据〕")).join("")
    : answer;
  const grounds = [...cited].sort((a, b) => a - b).map((number) => {
    const { title, source, text } = passages[number - 1];
    return `[${number}] ${title ? `${title}。` : ""}${text}（来源：${source}）`;
  });
  const parts = [`问：${question}`, `答：${body}`];
  if (grounds.length) parts.push(`依据：\n${grounds.join("\n")}`);
  if (certainty) parts.push(`把握${certainty}`);
  return [...parts, label || LABEL].join("\n\n");
}

function marked(text, mark) {
  const said = text.trimEnd();
  return said + mark + text.slice(said.length);
}

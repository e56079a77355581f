// Server-sent events, read by hand: EventSource can only GET.

/** The events of a stream of bytes that may be cut anywhere, within a character or between CR and LF too. */
export async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let name = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return; // an event without its blank line is not whole, and is dropped
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/); // a CR at the very end may be half of a CRLF: it waits
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { name: name || "message", data: data.join("\n") };
          name = "";
          data = [];
          continue;
        }
        const colon = line.indexOf(":"); // at 0: a comment, whose field is "" and means nothing
        const field = colon < 0 ? line : line.slice(0, colon);
        const content = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "event") name = content;
        if (field === "data") data.push(content);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening hangs up
  }
}

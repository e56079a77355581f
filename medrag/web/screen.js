// Keeping what matters on the screen.

import { byId } from "./elements.js";

/** On iPhones the keyboard covers the page's foot, label and all, unless the page is made as high as what is left to see. */
export function fitKeyboard() {
  const seen = window.visualViewport;
  const fit = () => {
    if (seen.scale > 1.01) return; // enlarged by the reader: no keyboard
    document.documentElement.style.setProperty("--seen", `${seen.height}px`);
    scrollTo(0, 0);
  };
  seen?.addEventListener("resize", fit);
}

let left = 0;

/** Show the newest turn from its beginning. While it grows, go along only where the reader has not scrolled meanwhile. */
export function follow(node, first) {
  const main = byId("conversation");
  if (!first && Math.abs(main.scrollTop - left) > 2) return;
  main.scrollTop = node.offsetTop - 12;
  left = main.scrollTop;
}

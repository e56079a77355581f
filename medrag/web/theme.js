// Light or dark. Not a module: it runs before the page is drawn, so that a dark page never flashes white.
(() => {
  const KEY = "medrag.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => (dark.matches ? "dark" : "light");
  let chosen = null;
  try {
    chosen = localStorage.getItem(KEY);
  } catch {
    // nothing may be stored: the choice lasts as long as the page
  }

  function show() {
    const theme = chosen === "dark" || chosen === "light" ? chosen : wanted();
    document.documentElement.dataset.theme = theme;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(theme === "dark"));
  }

  // What the system wants anyway is not remembered: the page then goes on following the system.
  function toggle() {
    const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    chosen = other === wanted() ? null : other;
    try {
      if (chosen) localStorage.setItem(KEY, chosen);
      else localStorage.removeItem(KEY);
    } catch {
      // as above
    }
    show();
  }

  show();
  dark.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", toggle);
    show();
  });
})();

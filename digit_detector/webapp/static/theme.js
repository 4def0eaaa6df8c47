// Loaded before the page is drawn, so that it never shows in the other colours first.
"use strict";

(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function kept() {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null; // storage is refused: follow the system
    }
  }

  function apply(theme) {
    root.dataset.theme = theme ?? (dark.matches ? "dark" : "light");
  }

  apply(kept());
  dark.addEventListener("change", () => apply(kept()));

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
    label();
    button.addEventListener("click", () => {
      const theme = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("theme", theme);
      } catch {
        // it lasts until the page is closed, then
      }
      apply(theme);
      label();
    });
  });
})();

// Light or dark as the system says, or as the visitor chose here. No module: it must be done before the first paint.
"use strict";

(() => {
  const SCHEMES = ["auto", "light", "dark"];
  const stored = () => {
    try {
      return localStorage.getItem("darkroom-scheme");
    } catch {
      return null; // Storage may be forbidden; then the choice lasts as long as the page.
    }
  };
  const store = (scheme) => {
    try {
      localStorage.setItem("darkroom-scheme", scheme);
    } catch {
      // See above.
    }
  };
  let scheme = SCHEMES.includes(stored()) ? stored() : "auto";
  const root = document.documentElement;
  root.dataset.scheme = scheme;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("scheme");
    const label = () => (button.textContent = `Colours: ${scheme}`);
    label();
    button.addEventListener("click", () => {
      scheme = SCHEMES[(SCHEMES.indexOf(scheme) + 1) % SCHEMES.length];
      root.dataset.scheme = scheme;
      store(scheme);
      label();
    });
  });
})();

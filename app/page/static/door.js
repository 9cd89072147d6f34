// Asks for the API key, when the API wants one.

import { byId } from "./dom.js";

/** The key that the visitor gives. */
export function askForKey(wasWrong) {
  byId("door-reason").textContent = wasWrong
    ? "That key does not open this door. Try another."
    : "This Darkroom works for those who have a key.";
  byId("key").value = "";
  byId("door").showModal();
  return new Promise((resolve) => {
    byId("door-form").addEventListener("submit", () => resolve(byId("key").value.trim()), { once: true });
  });
}

// Nothing on the page works without the key: Escape closes nothing.
byId("door").addEventListener("cancel", (event) => event.preventDefault());

// Asks for the API key, when the API wants one.

import { byId } from "./dom.js";

const door = byId("door");

/** The key that the visitor gives. */
export function askForKey(wasWrong) {
  byId("door-reason").textContent = wasWrong
    ? "That key does not open this door. Try another."
    : "This Darkroom works for those who have a key.";
  byId("key").value = "";
  door.showModal();
  return new Promise((resolve) => {
    const answer = () => {
      const key = byId("key").value.trim();
      // Nothing on the page works without a key: Escape only closes the door for a moment.
      if (!key) return door.showModal();
      door.removeEventListener("close", answer);
      resolve(key);
    };
    door.addEventListener("close", answer);
  });
}

// What was typed before Escape is not handed in.
door.addEventListener("cancel", () => (byId("key").value = ""));

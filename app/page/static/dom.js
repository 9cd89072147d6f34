// Small helpers. Text always goes in as text: nothing here parses markup.

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Say it to screen readers, once. */
export function tell(text) {
  byId("news").textContent = text;
}

/** Seconds in words: "0.5 s", "12 s", "3 min". */
export function duration(seconds) {
  if (seconds < 10) return `${Math.max(seconds, 0.1).toFixed(1)} s`;
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** The part of a task's id that people read. */
export const number = (task) => task.task_id.slice(0, 8).toUpperCase();

// The contact sheet: the caller's tasks, newest first.

import { byId, make, number } from "./dom.js";
import { put } from "./picture.js";
import { isPending, isReady, state } from "./words.js";

const frames = new Map();

/** Show these tasks; `open(taskId)` is called for the one that is chosen. */
export function show(tasks, current, open) {
  for (const taskId of frames.keys()) if (!tasks.some((task) => task.task_id === taskId)) removeFrame(taskId);
  tasks.forEach((task, position) => {
    const frame = frames.get(task.task_id) ?? addFrame(task, open);
    draw(frame, task, task.task_id === current);
    const there = byId("film").children[position];
    if (there !== frame.item) byId("film").insertBefore(frame.item, there ?? null);
  });
  byId("film-empty").hidden = tasks.length > 0;
}

function addFrame(task, open) {
  const picture = make("img", { alt: "", loading: "lazy", decoding: "async", hidden: true });
  const note = make("span", { className: "frame-state" });
  const edge = make("span", { className: "frame-edge", ariaHidden: "true" });
  const window = make("span", { className: "frame-window" }, picture, note);
  const button = make("button", { type: "button", className: "frame" }, window, edge);
  button.addEventListener("click", () => open(task.task_id));
  const frame = { item: make("li", {}, button), button, picture, note, edge };
  frames.set(task.task_id, frame);
  return frame;
}

function removeFrame(taskId) {
  frames.get(taskId).item.remove();
  frames.delete(taskId);
}

function draw({ item, button, picture, note, edge }, task, isCurrent) {
  const [image] = task.images;
  const words = shortState(task);
  item.dataset.state = isReady(task) ? "done" : isPending(task) ? "pending" : "failed";
  button.ariaLabel = [task.params.prompt, words || "ready", `seed ${task.seed}`].join(", ");
  button.ariaCurrent = String(isCurrent);
  note.textContent = words;
  edge.textContent = task.images.length > 1 ? `${number(task)} ×${task.images.length}` : number(task);
  picture.hidden = !image;
  if (image) {
    put(picture, task.task_id, image);
    picture.classList.toggle("is-small", Math.max(image.width, image.height) <= 256);
  }
}

/** Nothing for a print: it speaks for itself. */
function shortState(task) {
  if (isReady(task)) return "";
  if (task.progress && isPending(task)) return `${Math.round(100 * task.progress.value)} %`;
  return isPending(task) && task.phase === "QUEUED" ? "Waiting" : state(task);
}

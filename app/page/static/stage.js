// The tray: one task, from its ticket to its print.

import { place } from "./api.js";
import { byId, make, number } from "./dom.js";
import { put } from "./picture.js";
import { facts, isPending, isReady, progress, state } from "./words.js";

// Small pictures are shown a whole number of times larger, so that each of their pixels stays sharp.
const COMFORTABLE = 384;
const SMALL = 256;

let shown = null;
let index = 0;
// Which of the pictures is drawn; null while none is.
let drawn = null;

export const shownImage = () => shown?.images[index];

/** Show this task, or an empty tray; `reveal` lets a fresh print come up slowly. */
export function show(task, { preview = null, reveal = false } = {}) {
  if (isDrawn(task)) return;
  if (task?.task_id !== shown?.task_id) index = 0;
  shown = task;
  drawn = task && !isPending(task) ? index : null;
  byId("stage").dataset.state = stageState(task);
  byId("ticket").hidden = byId("print").hidden = !task;
  byId("empty").hidden = Boolean(task);
  byId("development").hidden = !task || !isPending(task);
  byId("result").hidden = !task || isPending(task);
  if (!task) return;
  showTicket(task);
  if (isPending(task)) showDevelopment(task, preview);
  else showResult(task, reveal);
}

/** A finished task is drawn once: what a visitor has marked there, or is about to press, stays where it is. */
function isDrawn(task) {
  return task === shown && drawn === index && !("lost" in byId("print").dataset);
}

export function showAway(words) {
  if (byId("away").textContent !== words) byId("away").textContent = words;
}

function stageState(task) {
  if (!task) return "empty";
  if (isPending(task)) return task.phase === "RUNNING" || task.phase === "UPLOADING" ? "developing" : "waiting";
  return isReady(task) ? "done" : "failed";
}

function showTicket(task) {
  byId("ticket-number").textContent = number(task);
  byId("ticket-state").textContent = state(task);
  const hadFocus = document.activeElement === byId("cancel");
  byId("cancel").hidden = !isPending(task);
  if (hadFocus && byId("cancel").hidden) byId("stage-title").focus();
}

function showDevelopment(task, preview) {
  const bar = byId("progress");
  if (task.progress) bar.value = task.progress.value;
  else bar.removeAttribute("value");
  byId("steps-done").textContent = progress(task) || task.params.prompt;
  byId("paper").style.setProperty("--developed", task.progress?.value ?? 0);
  const print = byId("print");
  print.hidden = preview === null;
  setSize(task.params);
  delete print.dataset.sha256;
  if (preview === null) return;
  print.src = preview;
  print.alt = "The picture so far";
  // It clears up as it develops.
  print.style.filter = `blur(${Math.round(6 * (1 - (task.progress?.value ?? 0)))}px)`;
}

function showResult(task, reveal) {
  const image = shownImage();
  byId("print").hidden = !image;
  if (image) showPrint(task, image, reveal);
  else setSize(task.params);
  byId("caption").textContent = task.params.prompt;
  byId("reason").hidden = !task.error;
  byId("reason").textContent = task.error?.message ?? "";
  byId("facts").replaceChildren(...facts(task, image).map(fact));
  byId("download").hidden = byId("variation").hidden = !image;
  showStrip(task);
}

const fact = ([word, value]) =>
  make("div", {}, make("dt", { textContent: word }), make("dd", { textContent: String(value) }));

function showPrint(task, image, reveal) {
  const print = byId("print");
  setSize(image);
  print.style.filter = "";
  print.alt = task.params.prompt;
  put(print, task.task_id, image);
  print.classList.toggle("is-fresh", reveal);
  byId("download").href = place(image.url);
}

function setSize({ width, height }) {
  const longest = Math.max(width, height);
  const scale = longest <= SMALL ? Math.max(1, Math.floor(COMFORTABLE / longest)) : 1;
  Object.assign(byId("print"), { width: width * scale, height: height * scale });
  byId("print").classList.toggle("is-small", scale > 1);
  byId("paper").style.setProperty("--width", `${width * scale}px`);
  byId("paper").style.setProperty("--shape", `${width} / ${height}`);
}

/** A name that tells what is in the file: "a-red-star-42.png". */
export function fileName(task, image) {
  const words = task.params.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.join("-").slice(0, 60)}-${image.seed}.png`;
}

function showStrip(task) {
  byId("strip").hidden = task.images.length < 2;
  byId("strip").replaceChildren(...task.images.map((image) => make("li", {}, stripButton(task, image))));
}

function stripButton(task, image) {
  const picture = make("img", { alt: "", width: 64, height: 64 });
  put(picture, task.task_id, image);
  const button = make("button", { type: "button", ariaLabel: `Picture ${image.index + 1}, seed ${image.seed}` }, picture);
  button.setAttribute("aria-pressed", String(image.index === index));
  button.addEventListener("click", () => {
    index = image.index;
    show(task);
    byId("strip").querySelectorAll("button")[index].focus();
  });
  return button;
}

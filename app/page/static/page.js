// The page: what happens between the counter, the tray and the contact sheet.

import { call, forgetKey, hasKey, picture, place, upload } from "./api.js";
import * as counter from "./counter.js";
import { byId, make, number, tell } from "./dom.js";
import { onLost } from "./picture.js";
import * as sheet from "./sheet.js";
import * as stage from "./stage.js";
import { Watch } from "./watch.js";
import { isPending, isReady, state } from "./words.js";

const PAGE = 24;
// Signed addresses are good for an hour by default; a page that comes to the front again reads new ones.
const FRESH_SECONDS = 600;
// Workers come and go while the page is open.
const MODELS_SECONDS = 10;
// A picture that does not come has an old address, or is gone: its task is read again, no more often than this.
const RENEW_SECONDS = 60;
const PAUSE = { first: 1000, most: 30_000 };

const tasks = new Map();
const previews = new Map();
const watch = new Watch(hear, reach);
let current = null;
let cursor = null;
let isSending = false;
// The task that one more click deletes.
let doomed = null;
let readAt = 0;

// ---- what is known

const newestFirst = () => [...tasks.values()].sort((a, b) => b.created_at.localeCompare(a.created_at));

function keep(task) {
  tasks.set(task.task_id, task);
  if (isPending(task)) return watch.follow(task.task_id);
  previews.delete(task.task_id);
  watch.leave(task.task_id);
}

function drop(taskId) {
  tasks.delete(taskId);
  previews.delete(taskId);
  watch.leave(taskId);
  if (current === taskId) current = null;
}

function draw({ reveal = false } = {}) {
  stage.show(tasks.get(current), { preview: previews.get(current) ?? null, reveal });
  sheet.show(newestFirst(), current, open);
  byId("older").hidden = cursor === null;
  byId("forget-key").hidden = !hasKey();
  byId("variation").disabled = !canVary(tasks.get(current));
}

function canVary(task) {
  return Boolean(task && counter.modelOf(task)?.capabilities.includes("img2img"));
}

function look(taskId) {
  current = taskId;
  doom(null);
  watch.lookAt(taskId);
  draw();
}

// ---- what is told

function hear(taskId, event, data) {
  const before = tasks.get(taskId);
  if (event === "gone") drop(taskId);
  else if (event === "status") keep(data);
  else if (event === "progress" && before) keep(advanced(before, data));
  else if (event === "preview" && before) previews.set(taskId, `data:image/jpeg;base64,${data.preview}`);
  const ended = before && isPending(before) && tasks.has(taskId) && !isPending(tasks.get(taskId));
  draw({ reveal: Boolean(ended) && taskId === current });
  announce(before, tasks.get(taskId));
}

/** Who waits learns that the service is away, and no later than it is back. */
function reach(refusal) {
  if (!refusal) counter.clearUnreachable();
  stage.showAway(refusal ? `${refusal.message} Asked again in a moment.` : "");
}

// Whatever an older answer said: a task that makes progress is running.
const advanced = (task, { step, steps }) => ({
  ...task,
  phase: "RUNNING",
  queue_position: null,
  progress: { value: step / steps, step, steps },
});

/** Changes of the phase are spoken; each step would be too much. */
function announce(before, task) {
  if (!task || before?.phase === task.phase) return;
  tell(isReady(task) ? `Ready: ${task.params.prompt}` : `Ticket ${number(task)}: ${state(task)}. ${task.error?.message ?? ""}`);
}

// ---- what the visitor does

/** Hand in a request; nothing else is handed in meanwhile. */
async function submit(body, file = null) {
  if (isSending) return;
  isSending = true;
  byId("develop").ariaDisabled = "true";
  counter.clearRefusal();
  try {
    await accept(await call("POST", "generate", body), file);
  } catch (refusal) {
    // Where a field is at fault, that one is shown.
    byId("develop").scrollIntoView({ block: "nearest" });
    counter.showRefusal(refusal);
  } finally {
    isSending = false;
    byId("develop").ariaDisabled = "false";
  }
}

async function accept(task, file) {
  keep(task);
  look(task.task_id);
  showStage();
  tell(`Accepted. Ticket ${number(task)}.`);
  if (file) await bring(task, file);
}

async function bring(task, file) {
  try {
    await upload(task, file);
    hear(task.task_id, "status", await call("POST", `tasks/${task.task_id}/start`));
  } catch (refusal) {
    // Without its picture the task would only wait.
    hear(task.task_id, "status", await call("POST", `tasks/${task.task_id}/cancel`));
    throw refusal;
  }
}

/** The same once more, each with a seed of its own; from its own print for a variation. */
const again = (task) => submit({ ...wishesOf(task) });
const vary = (task) =>
  submit({ ...wishesOf(task), num_images: 1, mask_url: undefined, input_url: stage.shownImage().input_url });

function wishesOf({ model_version, params }) {
  const given = Object.entries(params).filter(([, value]) => value !== null && value !== "");
  return { ...Object.fromEntries(given), model_version };
}

async function cancel(task) {
  hear(task.task_id, "status", await call("POST", `tasks/${task.task_id}/cancel`));
}

/** The store names files by their tickets; what is taken home is named by its prompt. */
async function takeHome(task) {
  // The address in the tray may be an old one.
  const fresh = await call("GET", `tasks/${task.task_id}`);
  const image = fresh.images[stage.shownImage().index];
  try {
    const address = URL.createObjectURL(await picture(image.url));
    make("a", { href: address, download: stage.fileName(fresh, image) }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  } catch {
    // A store at another origin may show its pictures to this page and yet not hand them over.
    make("a", { href: place(image.url), target: "_blank", rel: "noopener" }).click();
  }
}

/** Nothing brings a picture back: the first click asks, the second one means it. */
async function remove(task) {
  if (doomed !== task.task_id) {
    tell("Once more deletes it for good.");
    return doom(task.task_id);
  }
  doom(null);
  await call("DELETE", `tasks/${task.task_id}`).catch((refusal) => {
    // Somebody else was first.
    if (![404, 410].includes(refusal.status)) throw refusal;
  });
  const position = newestFirst().findIndex(({ task_id }) => task_id === task.task_id);
  drop(task.task_id);
  counter.forget(task.task_id);
  look((newestFirst()[position] ?? newestFirst()[position - 1])?.task_id ?? null);
  byId("stage-title").focus();
  tell("Deleted.");
}

function doom(taskId) {
  doomed = taskId;
  byId("remove").textContent = taskId ? "Delete for good" : "Delete";
}

function open(taskId) {
  look(taskId);
  showStage();
  byId("stage-title").focus({ preventScroll: true });
}

function showStage() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  // Beside the counter it is mostly in sight; below it, on a phone, it begins at the top.
  const block = byId("stage").offsetLeft > byId("counter").offsetLeft ? "nearest" : "start";
  byId("stage").scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}

/** A button that acts on the task in the tray. */
function act(id, action) {
  byId(id).addEventListener("click", async (event) => {
    event.preventDefault();
    try {
      await action(tasks.get(current));
    } catch (refusal) {
      counter.showRefusal(refusal);
    }
  });
}

// ---- history

async function readHistory(from = null) {
  const list = await call("GET", `tasks?limit=${PAGE}${from ? `&cursor=${encodeURIComponent(from)}` : ""}`);
  list.tasks.forEach(keep);
  readAt = Date.now();
  return list.next_cursor;
}

async function readOlder() {
  const { activeElement } = document;
  const there = byId("film").children.length;
  cursor = await readHistory(cursor);
  draw();
  // Its button is gone with the last of them.
  if (cursor === null && activeElement === byId("older")) byId("film").children[there]?.querySelector("button").focus();
}

async function readAgain() {
  if (document.hidden || Date.now() - readAt < 1000 * FRESH_SECONDS) return;
  await readHistory();
  draw();
}

const renewals = new Map();

async function renew(taskId) {
  if (!renewals.has(taskId)) {
    renewals.set(taskId, call("GET", `tasks/${taskId}`).then(keep, () => null));
    setTimeout(() => renewals.delete(taskId), 1000 * RENEW_SECONDS);
  }
  await renewals.get(taskId);
  draw();
}

async function readModels() {
  if (document.hidden) return;
  // Who is away for a moment is asked again.
  const answer = await call("GET", "models").catch(() => null);
  if (answer) counter.refreshModels(answer.models);
}

async function begin() {
  for (let pause = PAUSE.first; !(await isThere()); pause = Math.min(2 * pause, PAUSE.most)) await awhile(pause);
  counter.clearRefusal();
  look(newestFirst()[0]?.task_id ?? null);
  setInterval(readModels, 1000 * MODELS_SECONDS);
}

/** Whether the service told all that the page begins with. */
async function isThere() {
  try {
    counter.showModels((await call("GET", "models")).models);
    cursor = await readHistory();
    return true;
  } catch (refusal) {
    counter.showRefusal(refusal);
    return false;
  }
}

/** So many milliseconds, or less: until there is a network again. */
const awhile = (pause) =>
  new Promise((resolve) => {
    setTimeout(resolve, pause);
    addEventListener("online", resolve, { signal: AbortSignal.timeout(pause) });
  });

onLost(renew);
counter.open(() => submit(counter.wishes(), counter.startFile()));
act("cancel", cancel);
act("again", again);
act("variation", vary);
act("adjust", counter.fill);
act("download", takeHome);
act("remove", remove);
byId("remove").addEventListener("blur", () => doom(null));
// A key that is held down is one click.
byId("remove").addEventListener("keydown", (event) => event.repeat && event.preventDefault());
act("older", readOlder);
byId("forget-key").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
document.addEventListener("visibilitychange", readAgain);
begin();

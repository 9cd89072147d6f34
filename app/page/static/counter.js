// The counter: what the visitor asks for. It knows the form, and nothing about tasks.

import { byId, make } from "./dom.js";

const EXAMPLES_SHOWN = 3;
const form = byId("counter");
const field = (name) => form.elements[name];

let models = [];
// Where the picture starts: null, {file}, or {inputUrl}, each with a name and a preview to show.
let start = null;
// The code of the refusal that is shown.
let refused = "";

export const chosenModel = () => models.find((model) => model.model_version === field("model_version").value);
export const modelOf = (task) => models.find((model) => model.model_version === task.model_version);
export const startFile = () => start?.file ?? null;

export function showModels(known) {
  models = known;
  field("model_version").replaceChildren(...models.map(option));
  const usable = models.find((model) => !refuses(model)) ?? models[0];
  field("model_version").value = usable.model_version;
  fitToModel();
}

/** How they stand by now; what the visitor has filled in stays. */
export function refreshModels(known) {
  if (known.map(name).join() !== models.map(name).join()) return showModels(known);
  models = known;
  for (const [index, model] of models.entries()) Object.assign(field("model_version").options[index], facing(model));
  byId("model-hint").textContent = described(chosenModel());
}

/** The body of POST /generate. */
export function wishes() {
  const model = chosenModel();
  return {
    prompt: field("prompt").value.trim(),
    model_version: model.model_version,
    width: field("width").valueAsNumber,
    height: field("height").valueAsNumber,
    num_inference_steps: field("num_inference_steps").valueAsNumber,
    guidance_scale: field("guidance_scale").valueAsNumber,
    num_images: field("num_images").valueAsNumber,
    ...(field("negative_prompt").value && model.negative_prompt && { negative_prompt: field("negative_prompt").value }),
    ...(field("seed").value && { seed: field("seed").valueAsNumber }),
    ...(field("scheduler").value && { scheduler: field("scheduler").value }),
    ...startWishes(),
  };
}

/** Fill the form with what made this task. */
export function fill(task) {
  const { params } = task;
  if (modelOf(task)) field("model_version").value = task.model_version;
  fitToModel();
  for (const name of ["prompt", "negative_prompt", "width", "height", "num_images"]) field(name).value = params[name];
  for (const name of ["num_inference_steps", "guidance_scale", "strength"]) setDial(field(name), params[name]);
  field("scheduler").value = params.scheduler ?? "";
  field("seed").value = task.seed;
  startFrom(
    params.input_url && { inputUrl: params.input_url, maskUrl: params.mask_url, name: "the same input picture" },
  );
  form.querySelector("details").open = true;
  field("prompt").focus();
}

/** This task and its pictures are gone: nothing starts from them any more. */
export function forget(taskId) {
  if ([start?.inputUrl, start?.maskUrl].some((url) => url?.includes(taskId))) clearStart();
}

export function clearStart() {
  startFrom(null);
}

/** Say what was refused, beside the fields at fault where they are known. */
export function showRefusal(refusal) {
  clearRefusal();
  refused = refusal.code;
  const unplaced = refusal.errors.filter((error) => !mark(error));
  byId("refusal").textContent = refusal.errors.length
    ? unplaced.map(({ field: name, reason }) => `${name}: ${reason}`).join("; ") || "Please look at the marked fields."
    : refusal.message;
  form.querySelector("[aria-invalid]")?.focus();
}

/** What is wrong with a picture, where the visitor sees it, however far down the form that is. */
function say(words) {
  byId("refusal").textContent = words;
  byId("refusal").scrollIntoView({ block: "nearest" });
}

/** Take back what was said only because the service was away. */
export function clearUnreachable() {
  if (refused === "unreachable") clearRefusal();
}

export function clearRefusal() {
  refused = "";
  byId("refusal").textContent = "";
  for (const note of form.querySelectorAll(".fault")) note.remove();
  for (const control of form.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-errormessage");
  }
}

function mark({ field: name, reason }) {
  const control = form.elements[name];
  if (!control) return false;
  const note = make("p", { className: "fault", id: `${control.id}-fault`, textContent: reason });
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-errormessage", note.id);
  control.after(note);
  control.closest("details")?.setAttribute("open", "");
  return true;
}

// ---- the model

const refuses = (model) => model.status === "no_worker" && model.without_worker === "refuse";

const name = (model) => model.model_version;
const option = (model) => make("option", { value: name(model), ...facing(model) });

/** What the visitor sees of a model in the list. */
function facing(model) {
  const states = { no_worker: " (no worker)", loading: " (loading)", failed: " (does not load)", ready: "" };
  return { textContent: name(model) + (states[model.status] ?? ""), disabled: refuses(model) };
}

/** Limits, defaults and choices as the model has them. */
function fitToModel() {
  const model = chosenModel();
  for (const name of ["width", "height"]) {
    const bounds = { min: model.multiple_of, max: model.limits[name], step: model.multiple_of };
    Object.assign(field(name), { ...bounds, value: model.defaults[name] });
  }
  for (const name of ["num_inference_steps", "guidance_scale"]) {
    field(name).max = model.limits[name];
    setDial(field(name), model.defaults[name]);
  }
  setDial(field("strength"), model.defaults.strength);
  field("num_images").max = model.limits.num_images;
  byId("guidance-field").hidden = model.limits.guidance_scale === 0;
  byId("avoid-field").hidden = !model.negative_prompt;
  byId("scheduler-field").hidden = model.schedulers.length === 0;
  field("scheduler").replaceChildren(
    make("option", { value: "", textContent: "the model's own" }),
    ...model.schedulers.map((name) => make("option", { value: name, textContent: name })),
  );
  byId("model-hint").textContent = described(model);
  byId("drop").hidden = !model.capabilities.includes("img2img");
  if (byId("drop").hidden) clearStart();
}

function described(model) {
  const { width, height } = model.limits;
  const waiting = model.queue_depth ? ` ${model.queue_depth} in the queue.` : "";
  const typical = model.typical_seconds ? ` About ${model.typical_seconds} s a picture.` : "";
  return `Up to ${width} × ${height} pixels.${typical}${waiting}`;
}

function setDial(dial, value) {
  dial.value = value;
  form.querySelector(`output[for="${dial.id}"]`).value = Number(dial.value);
}

// ---- the picture to start from

function startFrom(chosen) {
  if (start?.preview) URL.revokeObjectURL(start.preview);
  start = chosen;
  byId("negative").hidden = byId("strength-field").hidden = !start;
  const hadFocus = document.activeElement === byId("file");
  byId("drop").classList.toggle("is-full", Boolean(start));
  if (start && hadFocus) byId("negative-remove").focus();
  byId("negative-name").textContent = start?.name ?? "";
  byId("negative-picture").hidden = !start?.preview;
  if (start?.preview) byId("negative-picture").src = start.preview;
  if (!start) byId("file").value = "";
}

function startWishes() {
  if (!start) return {};
  const strength = field("strength").valueAsNumber;
  if (start.file) return { input_image: true, strength };
  return { input_url: start.inputUrl, strength, ...(start.maskUrl && { mask_url: start.maskUrl }) };
}

function takeFile(file) {
  if (!file) return;
  clearRefusal();
  if (byId("drop").hidden) {
    say(`${chosenModel().model_version} does not start from a picture.`);
  } else if (file.type.startsWith("image/")) {
    startFrom({ file, name: file.name, preview: URL.createObjectURL(file) });
  } else {
    say(`${file.name} is no picture.`);
  }
}

// ---- what the visitor does

const carriesFile = (event) => event.dataTransfer?.types.includes("Files");

function watchDrop() {
  const curtain = (shown) => document.body.classList.toggle("is-dropping", shown);
  addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    curtain(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && curtain(false));
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    curtain(false);
    takeFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => takeFile(event.clipboardData?.files[0]));
}

function watchExamples() {
  const examples = [...form.querySelectorAll(".example")];
  let first = 0;
  const show = () =>
    examples.forEach((example, index) => {
      example.hidden = index < first || index >= first + EXAMPLES_SHOWN;
    });
  show();
  byId("more-examples").addEventListener("click", () => {
    first = (first + EXAMPLES_SHOWN) % examples.length;
    show();
  });
  for (const example of examples) {
    example.addEventListener("click", () => {
      field("prompt").value = example.textContent;
      field("prompt").focus();
    });
  }
}

/** The service reads more kinds of pictures than a browser shows, so that this is no refusal. */
function watchPreview() {
  byId("negative-picture").addEventListener("error", ({ target }) => {
    target.hidden = true;
    say(`${start.name} cannot be shown here: perhaps it is no picture.`);
  });
}

/** Begin; `submit()` is called when the visitor hands in. */
export function open(submit) {
  watchDrop();
  watchPreview();
  watchExamples();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  // A field at fault must be seen before the browser can point at it.
  form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
  form.addEventListener("input", ({ target }) => target.type === "range" && setDial(target, target.value));
  field("model_version").addEventListener("change", fitToModel);
  field("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  byId("file").addEventListener("change", () => takeFile(byId("file").files[0]));
  byId("negative-remove").addEventListener("click", () => {
    clearStart();
    byId("file").focus();
  });
}

// What a task is called at each point of its way.

import { duration } from "./dom.js";

const PHASES = {
  AWAITING_UPLOAD: "Waiting for the input picture",
  STARTING: "Preparing the bath",
  RUNNING: "Developing",
  UPLOADING: "Hanging it up to dry",
};

export const isPending = (task) => task.status === "PENDING";
export const isReady = (task) => task.status === "SUCCEEDED";
export const isCanceled = (task) => task.error?.code === "canceled";

/** Where the task is, in a few words. */
export function state(task) {
  if (isReady(task)) return "Ready";
  if (isCanceled(task)) return "Canceled";
  if (!isPending(task)) return "Spoiled";
  if (task.phase === "QUEUED") return queued(task);
  return PHASES[task.phase];
}

function queued(task) {
  const place = task.queue_position > 0 ? `${task.queue_position} in front of you` : "Next in line";
  return task.eta_seconds === null ? place : `${place}, about ${duration(task.eta_seconds)}`;
}

/** How far the development is, in words. */
export function progress(task) {
  if (!task.progress) return "";
  const { step, steps } = task.progress;
  return `Step ${step} of ${steps}`;
}

/** What made the picture, as pairs of a word and a value. */
export function facts(task, image) {
  const { params, metrics } = task;
  const all = [
    ["Seed", image?.seed ?? task.seed],
    ["Size", `${image?.width ?? params.width} × ${image?.height ?? params.height}`],
    ["Steps", params.num_inference_steps],
    ["Guidance", params.guidance_scale],
    ["Distance", params.input_url ? params.strength : undefined],
    ["Scheduler", params.scheduler],
    ["Avoided", params.negative_prompt || undefined],
    ["Model", task.model_version],
    ["Developed in", metrics.inference_ms === undefined ? undefined : duration(metrics.inference_ms / 1000)],
  ];
  return all.filter(([, value]) => value !== undefined && value !== null);
}

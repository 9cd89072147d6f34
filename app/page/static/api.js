// The public API. Addresses are relative to the page, so that it also works below a prefix.

import { askForKey } from "./door.js";

const KEY = "darkroom-key";
// Pictures in a folder of the service's own are served by the web tier. It answers under whichever name this page was
// opened (localhost, say), and only under that name is it the same origin.
const storedHere = document.documentElement.dataset.storage === "";

// A key's rate is soon kept: what comes too soon is sent again, this often at most.
const TRIES = 5;
const LONGEST_PAUSE = 5;

let asking = null;

/** A refusal: `problem` is the API's problem document, or made here when nothing answered. */
export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "That did not work.");
    this.code = problem.code || "";
    this.status = problem.status || 0;
    this.errors = problem.errors || [];
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The JSON that the API answers; raises Refusal. */
export async function call(method, path, body) {
  const response = await send(path, { method, ...json(body) });
  return response.status === 204 ? null : response.json();
}

/** The API's answer, not yet read; raises Refusal. Asks for a key as long as the API wants another one. */
export async function send(path, options = {}) {
  for (let tries = 1; ; tries += 1) {
    const key = sessionStorage.getItem(KEY);
    const response = await reach(path, { ...options, headers: { ...options.headers, ...authorization(key) } });
    if (response.ok) return response;
    if (tries < TRIES && (await isOnlyTooSoon(response))) continue;
    if (response.status !== 401) throw new Refusal(await problemOf(response));
    // Another request may have asked in the meantime.
    if (key === sessionStorage.getItem(KEY)) await newKey(key !== null);
  }
}

/** Bring the input picture to the signed URL, with exactly the headers that were told. */
export async function upload(task, file) {
  const most = task.upload_max_bytes;
  if (file.size > most) {
    throw new Refusal({ detail: `The picture has ${megabytes(file.size)}; at most ${megabytes(most)} are taken.` });
  }
  // Without a type of its own the browser adds no Content-Type.
  const body = new Blob([file]);
  const response = await reach(place(task.upload_url), {
    method: task.upload_method,
    headers: task.upload_headers,
    body,
  });
  if (!response.ok) throw new Refusal({ detail: "The picture store did not take the input picture." });
}

/** The bytes of a stored picture; raises Refusal, also where the store does not let this page read them. */
export async function picture(url) {
  const response = await reach(place(url));
  if (!response.ok) throw new Refusal({ detail: "The picture store did not give the picture." });
  return response.blob();
}

/** The address of a picture, as this page may read it. */
export function place(url) {
  const { pathname, search } = new URL(url, document.baseURI);
  const path = pathname.slice(pathname.indexOf("/files/") + 1);
  return storedHere ? path + search : url;
}

async function reach(path, options) {
  try {
    // A proxy before the service may know its visitors by a cookie; a store at another origin gets none.
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ detail: "Darkroom does not answer. Is the connection there?", code: "unreachable" });
  }
}

/** Whether a key's rate was the only reason; then its time is over by now. */
async function isOnlyTooSoon(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  if (response.status !== 429 || !(seconds > 0 && seconds <= LONGEST_PAUSE)) return false;
  if ((await problemOf(response.clone())).code !== "rate_limited") return false;
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  return true;
}

async function newKey(wasWrong) {
  asking ??= askForKey(wasWrong).finally(() => (asking = null));
  sessionStorage.setItem(KEY, await asking);
}

async function problemOf(response) {
  try {
    return await response.json();
  } catch {
    return { detail: `The service answered ${response.status}.`, status: response.status };
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

const authorization = (key) => (key === null ? {} : { Authorization: `Bearer ${key}` });

const json = (body) =>
  body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };

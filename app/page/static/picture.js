// A stored picture in an <img>. Its address is signed for a while only; one that has lapsed is asked for anew.

import { place } from "./api.js";

/** Let the element show this picture of the task. The same picture is fetched again only where it did not come. */
export function put(element, taskId, image) {
  const address = new URL(place(image.url), document.baseURI).href;
  const isWorthAnother = "lost" in element.dataset && element.src !== address;
  if (element.dataset.sha256 === image.sha256 && !isWorthAnother) return;
  delete element.dataset.lost;
  Object.assign(element.dataset, { taskId, sha256: image.sha256 });
  element.src = address;
}

/** `renew(taskId)` is called for each picture that does not come. */
export function onLost(renew) {
  const listen = ({ target }) => {
    if (!(target instanceof HTMLImageElement) || !target.dataset.taskId) return;
    target.dataset.lost = "";
    renew(target.dataset.taskId);
  };
  // Such events do not bubble.
  document.addEventListener("error", listen, true);
}

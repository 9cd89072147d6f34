// Follows tasks until they are done. Browsers open six connections to a server, over all tabs: a few tasks are followed
// at a time, first the one that is looked at, then the oldest. The others have their turn when these are done.

import { Refusal, send } from "./api.js";
import { eventsOf } from "./events.js";

const STREAMS = 2;
const PAUSE = { first: 500, most: 8000 };

export class Watch {
  #wanted = new Set();
  #streams = new Map();
  #looked = null;
  #hear;
  #reach;

  /**
   * `hear(taskId, event, data)` is told of each event; of `gone`, when there is no such task any more.
   * `reach(refusal)` is told why the service is not reached, and null when it is.
   */
  constructor(hear, reach) {
    this.#hear = hear;
    this.#reach = reach;
  }

  follow(taskId) {
    this.#wanted.add(taskId);
    this.#arrange();
  }

  leave(taskId) {
    this.#wanted.delete(taskId);
    this.#arrange();
  }

  /** This is the task that the visitor looks at. */
  lookAt(taskId) {
    this.#looked = taskId;
    this.#arrange();
  }

  #arrange() {
    const first = this.#wanted.has(this.#looked) ? [this.#looked] : [];
    const turns = new Set([...first, ...this.#wanted]);
    const chosen = new Set([...turns].slice(0, STREAMS));
    for (const [taskId, stream] of this.#streams) if (!chosen.has(taskId)) this.#end(taskId, stream);
    for (const taskId of chosen) if (!this.#streams.has(taskId)) this.#begin(taskId);
  }

  #end(taskId, stream) {
    this.#streams.delete(taskId);
    stream.abort();
  }

  #refused(taskId, refusal) {
    if ([404, 410].includes(refusal.status)) this.#hear(taskId, "gone");
    else this.#reach(refusal);
  }

  async #begin(taskId) {
    const stream = new AbortController();
    this.#streams.set(taskId, stream);
    let pause = PAUSE.first;
    while (!stream.signal.aborted) {
      try {
        // A new stream begins with the task as it is: nothing is lost by an interruption.
        for await (const { event, data } of eventsOf(await send(`tasks/${taskId}/events`, { signal: stream.signal }))) {
          pause = PAUSE.first;
          this.#reach(null);
          this.#hear(taskId, event, JSON.parse(data));
        }
      } catch (error) {
        if (stream.signal.aborted) return;
        if (error instanceof Refusal) this.#refused(taskId, error);
      }
      if (!stream.signal.aborted) await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, PAUSE.most);
    }
  }
}

import { explain } from "./api.js";

/** The heat maps of one file, each asked for once and kept until closed. */
export class HeatMaps {
  #file;
  #abort = new AbortController();
  #found = new Map();

  constructor(file) {
    this.#file = file;
  }

  /** Address of the picture of a frame under the heat map of a plane. */
  get(frame, plane) {
    const name = `${frame} ${plane}`;
    if (!this.#found.has(name)) {
      const url = explain(this.#file, frame, plane, this.#abort.signal).then(URL.createObjectURL);
      url.catch(() => this.#found.delete(name));
      this.#found.set(name, url);
    }
    return this.#found.get(name);
  }

  /** Stop asking and free the pictures. */
  close() {
    this.#abort.abort();
    for (const url of this.#found.values()) url.then(URL.revokeObjectURL, () => {});
  }
}

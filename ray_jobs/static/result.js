import { Cine } from "./cine.js";
import { byId, make, showImage } from "./dom.js";
import { HeatMaps } from "./heatmaps.js";
import { DECISIONS, isUsable, percent, planeOf } from "./words.js";

const PREDICTED = "";

/** The part of the page that shows one file's answer. */
export class Result {
  #entry = null;
  #frame = null;
  #wanted = "";
  #maps = null;
  #turn = 0;
  #cine;

  constructor(announce) {
    const load = (index) => this.#map(this.#entry.frames[index]);
    this.#cine = new Cine({ load, show: (index) => this.#showFrame(index), announce });
    byId("heat-class").addEventListener("change", () => this.#showHeat());
  }

  /** Show an entry that has its answer. */
  show(entry) {
    this.close();
    this.#entry = entry;
    this.#maps = new HeatMaps(entry.file);
    byId("result").hidden = false;
    byId("file").textContent = entry.file.name;
    byId("timings").textContent = timings(entry.answer.timings_ms);
    byId("heat").removeAttribute("src");
    this.#offerClasses();
    this.#showOriginal();
    this.#cine.open(entry.frames);
  }

  /** Hide the answer and free its pictures. */
  close() {
    this.#turn += 1;
    this.#wanted = "";
    this.#cine.close();
    this.#maps?.close();
    if (byId("picture").src) URL.revokeObjectURL(byId("picture").src);
    byId("result").hidden = true;
  }

  #offerClasses() {
    const names = Object.keys(this.#entry.frames[0].probabilities);
    const options = names.map((name) => make("option", {}, name));
    byId("heat-class").replaceChildren(
      make("option", { value: PREDICTED }, "the named plane"), ...options);
  }

  async #showOriginal() {
    const turn = this.#turn;
    const many = this.#entry.frames.length > 1;
    const picture = byId("picture");
    const shown = !many && await showImage(picture, URL.createObjectURL(this.#entry.file));
    if (turn !== this.#turn) return;
    picture.alt = `${this.#entry.file.name} as chosen`;
    byId("original").hidden = !shown;
    byId("unshowable").hidden = shown;
    byId("unshowable").textContent = many
      ? "The frames of a loop are shown under their heat maps."
      : "This browser cannot show files of this kind; the image is shown under its heat map.";
  }

  #showFrame(index) {
    const frame = this.#entry.frames[index];
    byId("plane").textContent = planeOf(frame);
    byId("confidence").textContent = isUsable(frame) ? percent(frame.confidence) : "";
    byId("decision").textContent = DECISIONS[frame.decision];
    byId("decision").className = `chip ${frame.decision}`;
    byId("reason").textContent = `Why: ${frame.reason}.`;
    drawBars(frame);
    this.#frame = frame;
    this.#showHeat();
  }

  /** Address of the heat map that is asked for, or null where the image allows no answer. */
  async #map(frame) {
    const plane = byId("heat-class").value || frame.plane;
    return isUsable(frame) ? this.#maps.get(frame.frame, plane) : null;
  }

  async #showHeat() {
    const frame = this.#frame;
    const plane = byId("heat-class").value || frame.plane;
    const wanted = `${this.#turn} ${frame.frame} ${plane}`;
    this.#wanted = wanted;
    byId("heat").classList.add("stale");
    let note = "No heat map, as the image was rejected.";
    const url = await this.#map(frame).catch((error) => {
      note = `No heat map. ${error.detail ?? error.message}`;
    });
    if (wanted !== this.#wanted) return;
    byId("heat").hidden = !url;
    byId("heat-note").hidden = Boolean(url);
    byId("heat-note").textContent = url ? "" : note;
    byId("heat").alt = `Frame ${frame.frame + 1} under a heat map of the evidence for ${plane}`;
    if (url) await showImage(byId("heat"), url);
    if (wanted === this.#wanted) byId("heat").classList.remove("stale");
  }
}

function drawBars(frame) {
  byId("probabilities").hidden = !isUsable(frame);
  const rows = Object.entries(frame.probabilities).map(([name, share]) => {
    const bar = make("span", { class: "bar" });
    bar.style.setProperty("--share", share);
    return make("tr", { class: name === frame.plane && "top" },
      make("th", { scope: "row" }, name), make("td", {}, bar),
      make("td", { class: "share" }, percent(share)));
  });
  byId("bars").replaceChildren(...rows);
}

function timings(times) {
  const parts = ["decode", "queue", "engine"].map((name) => `${name} ${Math.round(times[name])}`);
  return `Answered in ${Math.round(times.total)} ms (${parts.join(", ")}).`;
}

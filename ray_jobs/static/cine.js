import { byId, make, makeSvg } from "./dom.js";
import { DECISIONS, isUsable, range, runs, sentence } from "./words.js";

const FRAME_MS = 100;

/** Steps through the frames of a loop: `load(index)` fetches a picture, `show(index)` shows it. */
export class Cine {
  #root = byId("cine");
  #slider = byId("frame");
  #play = byId("play");
  #frames = [];
  #load;
  #show;
  #index = 0;
  #turn = 0;

  constructor({ load, show, announce }) {
    this.#load = load;
    this.#show = show;
    this.#slider.addEventListener("input", () => this.#stop(Number(this.#slider.value)));
    byId("back").addEventListener("click", () => this.#stop(this.#index - 1, announce));
    byId("forward").addEventListener("click", () => this.#stop(this.#index + 1, announce));
    this.#play.addEventListener("click", () => this.#toggle(announce));
    this.#root.addEventListener("keydown", (event) => this.#press(event, announce));
  }

  /** Take over the frames of a file; a single frame needs no controls. */
  open(frames) {
    this.close();
    this.#frames = frames;
    this.#root.hidden = frames.length < 2;
    this.#slider.max = frames.length - 1;
    if (!this.#root.hidden) {
      this.#drawStrip();
      this.#drawRuns();
    }
    this.#go(0);
  }

  /** Stop playing. */
  close() {
    this.#turn += 1;
    delete this.#root.dataset.playing;
    this.#play.textContent = "Play";
  }

  #toggle(announce) {
    if (this.#root.dataset.playing) {
      this.close();
      announce(this.#position());
    } else {
      this.#run();
    }
  }

  async #run() {
    this.close();
    const turn = this.#turn;
    this.#root.dataset.playing = "yes";
    this.#play.textContent = "Pause";
    while (turn === this.#turn) {
      const next = (this.#index + 1) % this.#frames.length;
      await Promise.all([this.#load(next).catch(() => {}), sleep(FRAME_MS)]);
      if (turn === this.#turn) this.#go(next);
    }
  }

  #stop(index, announce = () => {}) {
    this.close();
    this.#go(index);
    announce(this.#position());
  }

  #go(index) {
    const count = this.#frames.length;
    this.#index = (index + count) % count;
    this.#slider.value = this.#index;
    this.#slider.setAttribute("aria-valuetext", this.#position());
    byId("position").textContent = `Frame ${this.#index + 1} of ${count}`;
    byId("strip").querySelector(".at")?.setAttribute("x", this.#index);
    this.#show(this.#index);
  }

  #position() {
    const frame = this.#frames[this.#index];
    return `Frame ${this.#index + 1} of ${this.#frames.length}: ${sentence(frame)}`;
  }

  #press(event, announce) {
    const onButton = event.target.matches("button");
    const actions = {
      " ": onButton ? null : () => this.#toggle(announce),
      ArrowLeft: () => this.#stop(this.#index - 1, announce),
      ArrowRight: () => this.#stop(this.#index + 1, announce),
      Home: () => this.#stop(0, announce),
      End: () => this.#stop(this.#frames.length - 1, announce),
    };
    const action = event.ctrlKey || event.altKey || event.metaKey ? null : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #drawStrip() {
    const bars = this.#frames.map((frame, x) => {
      const height = isUsable(frame) ? frame.confidence : 1;
      return makeSvg("rect", { x, y: 1 - height, width: 0.86, height, class: frame.decision });
    });
    const at = makeSvg("rect", { class: "at", x: 0, y: 0, width: 0.86, height: 1 });
    byId("strip").setAttribute("viewBox", `0 0 ${this.#frames.length} 1`);
    byId("strip").replaceChildren(...bars, at);
  }

  #drawRuns() {
    const found = runs(this.#frames);
    byId("runs-caption").textContent = `Decisions frame by frame: ${this.#frames.length} frames`;
    byId("runs").replaceChildren(...found.map((run) => this.#row(run)));
  }

  #row({ first, last, plane, decision, confidences }) {
    const shown = decision === "reject" ? "-" : range(confidences);
    const name = first === last ? `${first + 1}` : `${first + 1}\u2013${last + 1}`;
    const jump = make("button", { type: "button", class: "link" }, name);
    jump.addEventListener("click", () => this.#stop(first));
    const chip = make("span", { class: `chip ${decision}` }, DECISIONS[decision]);
    return make("tr", {},
      make("th", { scope: "row" }, jump), make("td", {}, plane),
      make("td", {}, chip), make("td", {}, shown));
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

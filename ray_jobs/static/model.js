import { model } from "./api.js";
import { byId, make } from "./dom.js";
import { percent } from "./words.js";

/** Ask for the served model and show what is known about it. */
export async function showModel() {
  const note = byId("model-note");
  try {
    const card = await model();
    const facts = describe(card).filter(([, value]) => value);
    byId("model").replaceChildren(
      ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    note.textContent = card.threshold == null
      ? "Not calibrated: every answer needs review."
      : `Answers below ${percent(card.threshold)} confidence need review.`;
  } catch (error) {
    byId("model").replaceChildren();
    note.textContent = `${error.message}. ${error.detail ?? ""}`;
  }
}

function describe(card) {
  const test = card.metrics?.test;
  return [
    ["Name", card.name],
    ["Version", card.version],
    ["Network", [card.architecture, card.engine].filter(Boolean).join(", ")],
    ["Test accuracy", test ? accuracy(test) : "not measured"],
    ["Test macro-F1", test?.macro_f1 == null ? "" : percent(test.macro_f1)],
    ["Planes", card.classes?.join(", ")],
  ];
}

function accuracy({ accuracy: value, images, intervals }) {
  const interval = intervals?.accuracy;
  const bounds = interval ? ` (95 % interval ${interval.map(percent).join(" to ")})` : "";
  return `${percent(value)}${bounds} on ${images} test images`;
}

import { predict, setKey } from "./api.js";
import { byId, make } from "./dom.js";
import { showModel } from "./model.js";
import { Result } from "./result.js";
import { summary } from "./words.js";

const WAITING = "waiting";
const WORKING = "reading";
const DONE = "done";
const FAILED = "failed";

const result = new Result(announce);
let entries = [];
let selected = null;
let working = false;
let abort = new AbortController();

function announce(text) {
  byId("status").textContent = text;
}

function add(files) {
  const fresh = [...files].map((file) => ({ file, state: WAITING }));
  if (fresh.length === 0) return;
  entries.push(...fresh);
  select(fresh[0]);
  work();
}

async function work() {
  if (working) return;
  working = true;
  for (let entry; (entry = entries.find(({ state }) => state === WAITING));) {
    await answer(entry, abort.signal);
  }
  working = false;
}

async function answer(entry, signal) {
  entry.state = WORKING;
  drawList();
  announce(`Reading ${entry.file.name}`);
  try {
    entry.answer = await predict(entry.file, signal);
    entry.frames = entry.answer.results[0].frames;
    entry.state = DONE;
  } catch (error) {
    entry.error = error;
    entry.state = FAILED;
  }
  if (signal.aborted) return;
  announce(`${entry.file.name}: ${outcome(entry)}`);
  drawList();
  if (entry === selected) {
    show(entry);
    focusOn(entry);
  }
}

function outcome(entry) {
  if (entry.state === DONE) return summary(entry.frames);
  return entry.state === FAILED ? entry.error.message : entry.state;
}

function select(entry) {
  selected = entry;
  drawList();
  show(entry);
}

function show(entry) {
  const failed = entry?.state === FAILED;
  byId("failure").hidden = !failed;
  if (failed) {
    byId("failure-title").textContent = entry.error.message;
    byId("failure-file").textContent = entry.file.name;
    byId("failure-detail").textContent = entry.error.detail ?? "";
  }
  if (entry?.state === DONE) result.show(entry);
  else result.close();
}

/** Lead to the answer, unless the user has gone elsewhere meanwhile. */
function focusOn(entry) {
  const at = document.activeElement;
  if (at !== document.body && at !== byId("files") && at !== byId("retry")) return;
  if (entry.error?.status === 401 && entry.state === FAILED) {
    byId("access").open = true;
    byId("key").focus();
  } else {
    byId(entry.state === FAILED ? "failure-title" : "plane").focus();
  }
}

function drawList() {
  byId("listing").hidden = entries.length < 2;
  const focused = entries.findIndex(({ button }) => button === document.activeElement);
  byId("list").replaceChildren(...entries.map((entry) => make("li", {}, listButton(entry))));
  entries[focused]?.button.focus();
}

function listButton(entry) {
  const single = entry.state === DONE && entry.frames.length === 1;
  const kind = single ? entry.frames[0].decision : entry.state;
  entry.button = make("button",
    { type: "button", "aria-current": entry === selected && "true", class: `entry ${kind}` },
    make("span", { class: "name" }, entry.file.name),
    make("span", { class: "outcome" }, outcome(entry)));
  entry.button.addEventListener("click", () => select(entry));
  return entry.button;
}

function clear() {
  abort.abort();
  abort = new AbortController();
  entries = [];
  select(null);
  announce("All images removed");
  byId("files").focus();
}

function retry(failed) {
  for (const entry of failed) Object.assign(entry, { state: WAITING, error: null });
  show(selected);
  byId("files").focus();
  work();
}

function useKey() {
  setKey(byId("key").value);
  showModel();
  const refused = entries.filter(({ error }) => error?.status === 401);
  if (refused.length > 0) retry(refused);
}

function listenForFiles() {
  byId("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = "";
  });
  document.addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
  const over = (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", event.type === "dragover");
  };
  for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, over);
  document.addEventListener("drop", ({ dataTransfer }) => add(dataTransfer.files));
}

listenForFiles();
byId("clear").addEventListener("click", clear);
byId("retry").addEventListener("click", () => retry([selected]));
byId("key").addEventListener("change", useKey);
window.addEventListener("pagehide", () => {
  byId("key").value = "";
  setKey("");
});
showModel();

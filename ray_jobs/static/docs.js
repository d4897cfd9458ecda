import { byId, make } from "./dom.js";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];

const code = (text) => make("code", {}, text);
const nameOf = (reference) => reference.split("/").at(-1);

/** A schema in a few words, e.g. `array of Frame`. */
function kindOf(schema = {}) {
  if (schema.$ref) return nameOf(schema.$ref);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map(kindOf).join(" or ");
  if (schema.type === "array") return `array of ${kindOf(schema.items)}`;
  return [schema.type ?? "any", schema.format].filter(Boolean).join(", ");
}

function table(operation, caption, heads, rows) {
  if (rows.length === 0) return "";
  const cells = (row) => row.map((cell, at) =>
    at === 0 ? make("th", { scope: "row" }, cell) : make("td", {}, cell));
  return make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": `${caption} of ${operation}` },
    make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row))))));
}

function paragraphs(text = "") {
  return text.split(/\n\s*\n/).filter(Boolean).map((part) => make("p", {}, part));
}

function parameters(operation, found) {
  const rows = found.map(({ name, in: place, required, schema, description }) => [
    code(name), place, kindOf(schema), required ? "required" : "optional", description ?? ""]);
  return table(operation, "Parameters", ["Name", "In", "Kind", "Needed", "Meaning"], rows);
}

function contents(content = {}) {
  return Object.entries(content)
    .map(([type, { schema }]) => (schema ? `${type} (${kindOf(schema)})` : type)).join(", ");
}

function operation(path, method, item, shared) {
  const id = `${method} ${path}`;
  const known = [...shared, ...(item.parameters ?? [])];
  const body = item.requestBody?.content;
  const answers = Object.entries(item.responses ?? {}).map(([status, { description, content }]) => [
    status, description ?? "", contents(content)]);
  return make("section", { "aria-label": id },
    make("h2", {}, make("span", { class: "method" }, method.toUpperCase()), " ", code(path)),
    ...paragraphs(item.description ?? item.summary),
    parameters(id, known),
    body ? make("p", {}, `Body: ${contents(body)}`) : "",
    table(id, "Answers", ["Status", "Meaning", "Content"], answers));
}

function schemas(found = {}) {
  const parts = Object.entries(found).map(([name, schema]) => make("details", {},
    make("summary", {}, name),
    make("pre", { tabindex: 0 }, JSON.stringify(schema, null, 2))));
  if (parts.length === 0) return [];
  return [make("section", { "aria-labelledby": "schemas" },
    make("h2", { id: "schemas" }, "Schemas"), ...parts)];
}

function example() {
  const url = new URL("v1/predict", document.baseURI);
  return make("section", { "aria-labelledby": "example" },
    make("h2", { id: "example" }, "Example"),
    make("pre", { tabindex: 0 }, `curl --data-binary @image.png -H 'Content-Type: image/png' ${url}`));
}

async function show() {
  const response = await fetch("openapi.json", { credentials: "omit" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const api = await response.json();
  byId("version").textContent = `${api.info.title} ${api.info.version}`;
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method])
      .map((method) => operation(path, method, item[method], item.parameters ?? [])));
  byId("content").replaceChildren(example(), ...operations, ...schemas(api.components?.schemas));
}

show().catch((error) => {
  byId("status").textContent = `The OpenAPI document cannot be read: ${error.message}.`;
});

let key = "";

/** An error in words: what happened, and what to do. */
export class Problem extends Error {
  constructor(title, detail, status = 0) {
    super(title);
    this.detail = detail;
    this.status = status;
  }
}

/** Use this API key from now on; it lives in this variable only. */
export function setKey(value) {
  key = value.trim();
}

/** The card of the served model. */
export async function model() {
  return (await ask("v1/model", {})).json();
}

/** The answers for all frames of a file. */
export async function predict(file, signal) {
  return (await ask("v1/predict", { ...upload(file), signal })).json();
}

/** A frame under the heat map of a plane, as a PNG blob. */
export async function explain(file, frame, plane, signal) {
  const query = new URLSearchParams({ class: plane, frame });
  return (await ask(`v1/explain?${query}`, { ...upload(file), signal })).blob();
}

function upload(file) {
  const dicom = /\.(dcm|dicom)$/i.test(file.name ?? "");
  const type = dicom ? "application/dicom" : file.type || "application/octet-stream";
  return { method: "POST", body: file, headers: { "Content-Type": type } };
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(
      "The server did not answer",
      "It may have stopped, or the file changed on disk. Check both and try again.",
    );
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const { status } = response;
  const body = await response.json().catch(() => ({}));
  const title = body.title ?? `The server answered with status ${status}`;
  const wait = response.headers.get("Retry-After");
  const detail = [body.detail ?? "It gave no reason."];
  if (status === 401) detail.push("Enter the API key of this server, then try again.");
  if (wait) detail.push(`Try again in ${wait} s.`);
  return new Problem(title, detail.join(" "), status);
}

const SPACE = "\u00a0";

/** What each decision is called. */
export const DECISIONS = { accept: "Accepted", review: "Needs review", reject: "Rejected" };

/** A share as a percentage that never claims certainty. */
export function percent(share) {
  if (share > 0.999) return `> 99.9${SPACE}%`;
  if (share > 0 && share < 0.001) return `< 0.1${SPACE}%`;
  return `${(100 * share).toFixed(1)}${SPACE}%`;
}

/** Whether the image of a frame allows an answer at all. */
export const isUsable = (frame) => frame.decision !== "reject";

/** The plane of a frame, if its image allows an answer. */
export const planeOf = (frame) => (isUsable(frame) ? frame.plane : "No plane");

/** A frame's answer in one line. */
export function sentence(frame) {
  const decision = DECISIONS[frame.decision].toLowerCase();
  if (!isUsable(frame)) return `${planeOf(frame)}, ${decision}`;
  return `${planeOf(frame)}, ${percent(frame.confidence)}, ${decision}`;
}

/** A file's answer in one line. */
export function summary(frames) {
  if (frames.length === 1) return sentence(frames[0]);
  const counts = new Map();
  for (const frame of frames) counts.set(planeOf(frame), (counts.get(planeOf(frame)) ?? 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([plane, n]) => `${plane} ${n}`);
  return `${frames.length} frames: ${parts.join(", ")}`;
}

/** Neighbouring frames with the same plane and decision, as {first, last, plane, ...}. */
export function runs(frames) {
  const found = [];
  for (const frame of frames) {
    const last = found.at(-1);
    if (last && last.plane === planeOf(frame) && last.decision === frame.decision) {
      last.last = frame.frame;
      last.confidences.push(frame.confidence);
    } else {
      found.push({
        first: frame.frame, last: frame.frame, plane: planeOf(frame),
        decision: frame.decision, confidences: [frame.confidence],
      });
    }
  }
  return found;
}

/** Least and greatest of some confidences. */
export function range(confidences) {
  const [least, most] = [Math.min(...confidences), Math.max(...confidences)].map(percent);
  return least === most ? least : `${least} to ${most}`;
}

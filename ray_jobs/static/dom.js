/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element; attributes with the value false or null are left out. */
export function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  setAttributes(node, attributes);
  node.append(...children);
  return node;
}

/** A new SVG element. */
export function makeSvg(name, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  setAttributes(node, attributes);
  return node;
}

/** Show an image and wait until it can be seen; false if the browser cannot show it. */
export async function showImage(image, url) {
  image.src = url;
  try {
    await image.decode();
    return true;
  } catch {
    return false;
  }
}

function setAttributes(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(key, value === true ? "" : value);
  }
}

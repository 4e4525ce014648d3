// Elements of the page.

/** A name from a file, which may be broken behind dots. It cannot turn what stands around it. */
export function nameOf(text) {
  const made = document.createElement("bdi");
  text.split(/(?<=\.)/).forEach((part, i) => made.append(...(i === 0 ? [] : [document.createElement("wbr")]), part));
  return made;
}

/** An element with attributes and children; strings become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

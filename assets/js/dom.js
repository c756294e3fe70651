/* Elements and frames. Values from outside become text through textContent alone; no string is parsed as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with an optional class and text.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [className]
 * @param {string | number} [text]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = String(text);
  return node;
}

/**
 * A button with a text and a handler.
 *
 * @param {string} text
 * @param {() => void} press
 */
export function makeButton(text, press) {
  const button = make("button", "", text);
  button.type = "button";
  button.addEventListener("click", press);
  return button;
}

/**
 * A paragraph that a screen reader reads when it changes.
 *
 * @param {string} className
 * @param {string} [text]
 */
export const makeStatus = (className, text) => Object.assign(make("p", className, text), { role: "status" });

/**
 * An SVG element with its attributes, but for undefined ones; numbers are rounded.
 *
 * @param {string} tag
 * @param {Record<string, string | number | undefined>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {SVGElement}
 */
export function makeSvg(tag, attributes = {}, ...children) {
  const node = /** @type {SVGElement} */ (document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined) continue;
    node.setAttribute(name, String(typeof value === "number" ? Math.round(100 * value) / 100 : value));
  }
  node.append(...children);
  return node;
}

/**
 * An SVG element with a text.
 *
 * @param {string | number} text
 * @param {Record<string, string | number>} [attributes]
 */
export const makeText = (text, attributes) => makeSvg("text", attributes, String(text));

/**
 * A cell that heads a column or a row of a table.
 *
 * @param {string | number} text
 * @param {"col" | "row"} [scope]
 */
export const makeHead = (text, scope = "col") => Object.assign(make("th", "", text), { scope });

/**
 * A row of a table: its cells are elements, or become some.
 *
 * @param {(Element | string | number)[]} cells
 */
export function makeRow(...cells) {
  const row = make("tr");
  row.append(...cells.map((cell) => (cell instanceof Element ? cell : make("td", "", cell))));
  return row;
}

/**
 * A table with names of its columns.
 *
 * @param {string} className
 * @param {string} caption empty for none
 * @param {string[]} head
 * @param {Element[]} rows
 */
export function makeTable(className, caption, head, rows) {
  const table = make("table", className);
  const [top, body] = [make("thead"), make("tbody")];
  top.append(makeRow(...head.map((name) => makeHead(name))));
  body.append(...rows);
  table.append(...(caption ? [make("caption", "", caption)] : []), top, body);
  return table;
}

/**
 * A function that has `draw` called with the next frame, once however often it is called before.
 *
 * @param {() => void} draw
 */
export function withNextFrame(draw) {
  let isAsked = false;
  return () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      draw();
    });
  };
}

/**
 * An element of a view's template. A missing element is a bug.
 *
 * @template {Element} [T=HTMLElement]
 * @param {ParentNode} root
 * @param {string} selector
 * @returns {T}
 */
export function find(root, selector) {
  const element = root.querySelector(selector);
  if (!element) throw new Error(`The template has no ${selector}.`);
  return /** @type {T} */ (element);
}

// What all parts of the page share. Texts of the model go in through textContent alone.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const deviceIndex = new Map(DATA.devices.map((d, i) => [d.id, i]));

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "class") node.setAttribute("class", value);
    else if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

const html = (tag, attributes, ...children) =>
  put(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  put(document.createElementNS(SVG, tag), attributes, children);

function colour(device) {
  const index = deviceIndex.get(device);
  return index === undefined || index >= COLOURS ? "var(--none)" : `var(--c${index})`;
}

function inkOn(device) {
  const index = deviceIndex.get(device);
  return index === undefined || index >= COLOURS ? "var(--ink)" : `var(--i${index})`;
}

const chip = (device) => html("span", { class: "chip", style: { background: colour(device) } });

function three(value) {
  if (value === 0) return "0";
  const digits = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.max(0, 2 - digits));
}

function seconds(value) {
  if (value === null || value === undefined) return "\u2013";
  if (value === 0) return "0";
  for (const [scale, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "\u00b5s"]]) {
    if (Math.abs(value) >= scale * 0.9995) return `${three(value / scale)} ${unit}`;
  }
  return `${three(value * 1e9)} ns`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return unit === 0 ? `${value} B` : `${three(value)} ${units[unit]}`;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const stepTitle = (s) => (s.kind === "copy" ? `copy ${s.src} \u2192 ${s.dst}` : s.op);
const stepMeasured = (s) =>
  s.measured.length ? s.measured.reduce((sum, m) => sum + m[1], 0) : null;

const tip = html("div", { id: "tip" });

function placeTip(event, lines) {
  tip.replaceChildren(...lines);
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const y = below + box.height > innerHeight ? event.clientY - box.height - 12 : below;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${Math.max(8, y)}px`;
}

function showTip(event, index) {
  const s = DATA.steps[index];
  const lines = [
    html("b", {}, stepTitle(s)), s.name, html("br"),
    `${s.queue}, predicted ${seconds(s.seconds)} (${s.source})`,
  ];
  const got = stepMeasured(s);
  if (got !== null) lines.push(`, measured ${seconds(got)}`);
  if (s.kind === "copy") lines.push(html("br"), bytes(s.nbytes));
  placeTip(event, lines);
}

const hideTip = () => { tip.style.visibility = "hidden"; };

const hovering = (index) => ({
  onpointermove: (event) => showTip(event, index),
  onpointerleave: hideTip,
});

// Selection: one step at a time, shown by every part.
const selection = { step: null, parts: [] };

function select(index, centre) {
  selection.step = index;
  for (const part of selection.parts) part(index, centre);
}

// Dragging moves, the wheel zooms once the drawing has the focus (or with Ctrl held).
function navigable(node, move, zoom) {
  let last = null;
  let moved = 0;
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    last = [event.clientX, event.clientY];
    moved = 0;
  });
  node.addEventListener("pointermove", (event) => {
    if (last === null) return;
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    moved += Math.abs(dx) + Math.abs(dy);
    if (moved < 4) return;
    if (!node.hasPointerCapture(event.pointerId)) node.setPointerCapture(event.pointerId);
    node.classList.add("drag");
    last = [event.clientX, event.clientY];
    move(dx, dy);
  });
  const stop = () => { last = null; node.classList.remove("drag"); };
  node.addEventListener("pointerup", stop);
  node.addEventListener("pointercancel", stop);
  node.addEventListener("click", (event) => {
    if (moved >= 4) { event.stopPropagation(); moved = 0; }
  }, true);
  node.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== node) return;
    event.preventDefault();
    const box = node.getBoundingClientRect();
    const scale = event.deltaMode === 1 ? 0.05 : 0.0015;
    const factor = Math.exp(-event.deltaY * scale);
    zoom(factor, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
}

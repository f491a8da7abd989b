// The graph, coloured by device. Coordinates come with the data.

const BOX = { height: 36, band: 5, far: 0.42, margin: 16 };

function graphPanel() {
  const { boxes, edges, width, height } = DATA.graph;
  const root = svg("svg", { id: "graph", tabindex: "0", role: "img",
    "aria-label": "The graph, each op coloured by its device" });
  const layer = svg("g");
  root.append(layer);
  const view = { x: 0, y: 0, scale: 1 };

  const device = (box) => (box.step === null ? null : DATA.steps[box.step].device);

  function curve(path) {
    return path.slice(1).reduce((d, [x1, y1], i) => {
      const [x0, y0] = path[i];
      const from = i === 0 ? y0 + BOX.height / 2 : y0;
      const to = i === path.length - 2 ? y1 - BOX.height / 2 : y1;
      const half = (from + to) / 2;
      return `${d}${i === 0 ? `M${x0},${from}` : ""}C${x0},${half} ${x1},${half} ${x1},${to}`;
    }, "");
  }

  const lines = edges.map((edge) => {
    const [a, b] = [device(boxes[edge.from]), device(boxes[edge.to])];
    const crossing = a !== null && b !== null && a !== b;
    return svg("path", { class: `edge${crossing ? " crossing" : ""}`, d: curve(edge.path) });
  });

  const nodes = boxes.map((box) => {
    const [left, top] = [box.x - box.width / 2, box.y - BOX.height / 2];
    const step = box.step;
    const round = box.kind === "op" || box.kind === "alias" ? 5 : BOX.height / 2;
    const extra = step === null ? {} : { "data-step": step, ...hovering(step),
      onclick: () => select(step, "gantt") };
    const group = svg("g", { class: `box ${box.kind}`, transform: `translate(${left},${top})`,
      ...extra },
      svg("rect", { class: "back", "data-device": device(box), width: box.width,
        height: BOX.height, rx: round }),
      step === null ? null : svg("rect", { class: "mark", width: BOX.band, height: BOX.height,
        rx: 2.5, style: { fill: colour(device(box)) } }),
      svg("text", { class: "title", x: box.width / 2 + 2, y: 15, "text-anchor": "middle" },
        box.title),
      svg("text", { class: "soft", x: box.width / 2 + 2, y: 29, "text-anchor": "middle" },
        box.below));
    group.style.setProperty("--own", colour(device(box)));
    return group;
  });
  layer.append(...lines, ...nodes);

  function paint() {
    layer.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`);
    const far = view.scale < BOX.far;
    if (layer.classList.toggle("far", far) === paint.far) return;
    paint.far = far;
    // From afar a box is its device's colour; near, a card with a coloured edge.
    boxes.forEach((box, i) => {
      const mark = nodes[i].querySelector(".mark");
      if (mark) mark.setAttribute("width", far ? box.width : BOX.band);
    });
  }
  paint.far = false;

  const size = () => [root.clientWidth || 800, root.clientHeight || 640];

  function fit() {
    const [w, h] = size();
    view.scale = Math.min(1.2, (w - 2 * BOX.margin) / width, (h - 2 * BOX.margin) / height);
    view.x = (w - width * view.scale) / 2;
    view.y = (h - height * view.scale) / 2;
    paint();
  }

  // At first: as much as can be read, from the top.
  function begin() {
    fit();
    if (view.scale >= 0.55) return;
    const [w] = size();
    view.scale = Math.max(view.scale, Math.min(0.9, (w - 2 * BOX.margin) / width), 0.55);
    const first = boxes.reduce((a, b) => (b.y < a.y ? b : a), boxes[0]);
    const spare = w - width * view.scale;
    view.x = spare >= 0 ? spare / 2 : w / 2 - first.x * view.scale;
    view.y = BOX.margin;
    paint();
  }

  function zoom(factor, x, y) {
    const scale = Math.min(4, Math.max(0.005, view.scale * factor));
    view.x = x - (x - view.x) * scale / view.scale;
    view.y = y - (y - view.y) * scale / view.scale;
    view.scale = scale;
    paint();
  }

  function centre(box) {
    const [w, h] = size();
    const [px, py] = [view.x + box.x * view.scale, view.y + box.y * view.scale];
    const seen = px > 60 && px < w - 60 && py > 30 && py < h - 30;
    if (seen && view.scale >= BOX.far) return;
    view.scale = Math.max(view.scale, 0.7);
    view.x = w / 2 - box.x * view.scale;
    view.y = h / 2 - box.y * view.scale;
    paint();
  }

  navigable(root, (dx, dy) => { view.x += dx; view.y += dy; paint(); }, zoom);
  selection.parts.push((index, where) => {
    let at = null;
    boxes.forEach((box, i) => {
      const own = index !== null && box.step === index;
      nodes[i].classList.toggle("selected", own);
      if (own) at = i;
    });
    edges.forEach((edge, i) => {
      lines[i].classList.toggle("near", at !== null && (edge.from === at || edge.to === at));
    });
    if (at !== null && where !== "gantt") centre(boxes[at]);
  });
  let shown = false;
  new ResizeObserver(() => {
    if (shown || !root.clientWidth) return;
    shown = true;
    begin();
    const chosen = boxes.find((box) => box.step !== null && box.step === selection.step);
    if (chosen) centre(chosen);
  }).observe(root);
  const zoomBy = (factor) => () => zoom(factor, size()[0] / 2, size()[1] / 2);
  return panel("Graph", root, [
    ["\u2212", "Zoom out", zoomBy(1 / 1.4)],
    ["+", "Zoom in", zoomBy(1.4)],
    ["Fit", "Show all", fit],
  ], "bold edges cross between devices; faint boxes are views, which cost nothing");
}

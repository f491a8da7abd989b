// Curves over the batch: both axes logarithmic, a line a device set, its interval as a band.

const PLOT = { left: 74, right: 18, top: 14, bottom: 40, height: 330 };

// Powers of ten between two numbers, with their halves and fifths where there are few.
function logTicks(from, to) {
  const [first, last] = [Math.floor(Math.log10(from)), Math.ceil(Math.log10(to))];
  const parts = last - first > 4 ? [1] : last - first > 2 ? [1, 3] : [1, 2, 5];
  const all = [];
  for (let power = first; power <= last; power += 1) {
    for (const part of parts) all.push(part * 10 ** power);
  }
  return all.filter((v) => v >= from * 0.999 && v <= to * 1.001);
}

function count(value) {
  for (const [scale, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= scale * 0.9995) return three(value / scale) + unit;
  }
  return three(value);
}

const setLabel = (devices) => devices.join(" + ");

// The points of a set as [batch, middle, low, high], where `read` gives numbers.
function series(devices, read) {
  const wanted = setLabel(devices);
  return DATA.points.filter((p) => setLabel(p.devices) === wanted && p.seconds !== null)
    .map((p) => ({ point: p, values: read(p) }));
}

function curvesPanel(title, hint, read, format) {
  const root = svg("svg", { tabindex: "0", role: "img", "aria-label": title });
  root.style.height = `${PLOT.height}px`;
  const lines = DATA.sets.map((devices) => ({ devices, rows: series(devices, read) }));
  const all = lines.flatMap((line) => line.rows.flatMap((row) => row.values));
  const [lowest, highest] = [Math.min(...all) / 1.2, Math.max(...all) * 1.2];
  const batches = DATA.batches;
  let width = 800;

  const span = Math.max(1e-9, Math.log(batches.at(-1) / batches[0]));
  const x = (batch) => PLOT.left + (batches.length < 2 ? 0.5 : Math.log(batch / batches[0]) / span)
    * (width - PLOT.left - PLOT.right);
  const y = (value) => PLOT.height - PLOT.bottom - Math.log(value / lowest)
    / Math.log(highest / lowest) * (PLOT.height - PLOT.top - PLOT.bottom);

  const across = (value) => [
    svg("line", { class: "tick", x1: PLOT.left, x2: width - PLOT.right, y1: y(value), y2: y(value) }),
    svg("text", { class: "soft", x: PLOT.left - 8, y: y(value) + 4, "text-anchor": "end" },
      format(value))];
  const down = (batch) => [
    svg("line", { class: "tick", x1: x(batch), x2: x(batch), y1: PLOT.top,
      y2: PLOT.height - PLOT.bottom }),
    svg("text", { class: "soft", x: x(batch), y: PLOT.height - PLOT.bottom + 16,
      "text-anchor": "middle" }, batch)];

  function curve({ devices, rows }) {
    if (!rows.length) return [];
    const name = setLabel(devices);
    const at = (k) => rows.map((r) => `${x(r.point.batch)},${y(r.values[k])}`);
    return [
      svg("polygon", { class: "spread", points: [...at(1), ...at(2).reverse()].join(" "),
        style: { fill: colour(name) } }),
      svg("polyline", { class: devices.length > 1 ? "curve wide" : "curve", points: at(0).join(" "), style: { stroke: colour(name) } }),
      ...rows.map((r) => svg("circle", { r: 4, cx: x(r.point.batch), cy: y(r.values[0]),
        style: { fill: colour(name) },
        onpointermove: (event) => placeTip(event, pointTip(r.point)), onpointerleave: hideTip })),
    ];
  }

  function mark(found) {
    if (found.batch === null || found.batch < batches[0] || !found.exact) return [];
    return svg("line", { class: "even", x1: x(found.batch), x2: x(found.batch), y1: PLOT.top,
      y2: PLOT.height - PLOT.bottom, style: { stroke: colour(setLabel(found.devices)) } });
  }

  function draw() {
    width = Math.max(320, root.clientWidth || 800);
    root.replaceChildren(
      ...logTicks(lowest, highest).flatMap(across), ...batches.flatMap(down),
      svg("text", { class: "soft", x: (PLOT.left + width - PLOT.right) / 2,
        y: PLOT.height - 6, "text-anchor": "middle" }, "batch"),
      ...DATA.break_even.flatMap(mark),
      // The set of all lies on another's curve wherever it is no better: it is drawn below them.
      ...[...lines].sort((a, b) => b.devices.length - a.devices.length).flatMap(curve));
  }

  new ResizeObserver(draw).observe(root);
  if (!all.length) return panel(title, html("div", { class: "scroll" }, "no set has a plan"), [], "");
  return panel(title, root, [], hint);
}

function pointTip(point) {
  return [html("b", {}, setLabel(point.devices)), `batch ${point.batch}: ${seconds(point.seconds)}`,
    ` (${seconds(point.low)} \u2013 ${seconds(point.high)})`, html("br"),
    `${count(point.throughput)} samples/s`];
}

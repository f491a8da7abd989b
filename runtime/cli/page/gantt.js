// The timeline: a row a queue, predicted bars above measured ones.

const GANTT = { label: 168, top: 8, axis: 26, lane: 20, thin: 12, pad: 8 };

function ganttPanel() {
  const root = svg("svg", { id: "gantt", tabindex: "0", role: "img",
    "aria-label": "Timeline of the plan, a row a queue" });
  const ran = DATA.measured !== null;
  const rowHeight = GANTT.lane + (ran ? GANTT.thin + 3 : 0) + GANTT.pad * 2;
  const height = GANTT.top + rowHeight * DATA.queues.length + GANTT.axis;
  root.style.height = `${height}px`;
  const end = Math.max(1e-9, DATA.replay, ...DATA.steps.flatMap(
    (s) => s.measured.map(([at, took]) => at + took)));
  const view = { from: 0, to: end };
  let width = 800;

  const clip = svg("clipPath", { id: "plot" }, svg("rect", { y: 0, height }));
  const back = svg("g");
  const ticks = svg("g");
  const plot = svg("g", { "clip-path": "url(#plot)" });
  const waits = svg("g", { "clip-path": "url(#plot)", "pointer-events": "none" });
  root.append(svg("defs", {}, clip), back, ticks, plot, waits);

  const x = (time) =>
    GANTT.label + (time - view.from) / (view.to - view.from) * (width - GANTT.label - 26);
  const y = (row) => GANTT.top + rowHeight * row + GANTT.pad;

  function bars() {
    const groups = DATA.steps.map((s, index) => {
      const group = svg("g", { class: "step", "data-step": index, ...hovering(index),
        onclick: () => select(index, "graph") });
      const copy = s.kind === "copy";
      group.append(svg("rect", { rx: 2, y: y(s.row), height: GANTT.lane,
        style: { fill: colour(s.device), fillOpacity: copy ? 0.45 : 1 } }));
      group.append(svg("text", { y: y(s.row) + 14, "pointer-events": "none",
        style: { fill: copy ? "var(--ink)" : inkOn(s.device) } }, stepTitle(s)));
      for (const _ of s.measured) {
        group.append(svg("rect", { rx: 2, y: y(s.row) + GANTT.lane + 3, height: GANTT.thin,
          style: { fill: colour(s.device), fillOpacity: copy ? 0.3 : 0.62 } }));
      }
      return group;
    });
    plot.append(...groups);
    return groups;
  }

  function rows() {
    back.replaceChildren(...DATA.queues.flatMap((q, row) => {
      const middle = y(row) + GANTT.lane / 2 + 4;
      const [device, role] = [q.device, q.name.slice(q.device.length + 1)];
      const parts = [
        svg("rect", { class: "band", x: 0, width, y: y(row) - GANTT.pad, height: rowHeight,
          style: { opacity: row % 2 ? 0 : 0.55 } }),
        svg("rect", { x: 12, y: middle - 9, width: 10, height: 10, rx: 3,
          style: { fill: colour(device), fillOpacity: role === "compute" ? 1 : 0.45 } }),
        svg("text", { x: 30, y: middle }, device),
        svg("text", { class: "soft", x: GANTT.label - 10, y: middle, "text-anchor": "end" }, role),
      ];
      if (ran) {
        parts.push(svg("text", { class: "faint", x: GANTT.label - 10,
          y: middle + GANTT.lane - 1, "text-anchor": "end" }, "measured"));
      }
      return parts;
    }));
  }

  // As many decimals as tell neighbouring ticks apart, in one unit for all of them.
  function tickLabel(t, every) {
    if (Math.abs(t) < every / 2) return "0";
    const [scale, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "\u00b5s"], [1e-9, "ns"]].find(
      ([size]) => view.to >= size) || [1e-9, "ns"];
    const decimals = Math.max(0, -Math.floor(Math.log10(every / scale) + 1e-9));
    return `${(t / scale).toFixed(Math.min(9, decimals))} ${unit}`;
  }

  function axis() {
    const span = view.to - view.from;
    const rough = span / Math.max(2, (width - GANTT.label) / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const every = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const bottom = height - GANTT.axis;
    const marks = [];
    for (let t = Math.ceil(view.from / every) * every; t <= view.to * 1.0001; t += every) {
      marks.push(svg("line", { class: "tick", x1: x(t), x2: x(t), y1: GANTT.top, y2: bottom }));
      marks.push(svg("text", { class: "faint", x: x(t), y: bottom + 17, "text-anchor": "middle" },
        tickLabel(t, every)));
    }
    ticks.replaceChildren(...marks);
  }

  function place(rect, at, took) {
    const [from, to] = [x(at), x(at + took)];
    // A hair of space keeps neighbours apart where there is room for it.
    const wide = to - from > 3 ? to - from - 1 : Math.max(to - from, 1);
    rect.setAttribute("x", from);
    rect.setAttribute("width", wide);
    return wide;
  }

  function visible(s) {
    const ends = [[s.start, s.seconds], ...s.measured];
    return ends.some(([at, took]) => at + took >= view.from && at <= view.to);
  }

  const groups = bars();

  function paint() {
    clip.firstChild.setAttribute("x", GANTT.label);
    clip.firstChild.setAttribute("width", Math.max(0, width - GANTT.label));
    rows();
    axis();
    DATA.steps.forEach((s, index) => {
      const group = groups[index];
      group.style.display = visible(s) ? "" : "none";
      if (!visible(s)) return;
      const [rect, text, ...measured] = group.childNodes;
      const wide = place(rect, s.start, s.seconds);
      const room = Math.floor((wide - 8) / 6.4);
      text.style.display = room >= 3 ? "" : "none";
      if (room >= 3) {
        const title = stepTitle(s);
        text.textContent = title.length > room ? `${title.slice(0, room - 1)}\u2026` : title;
        text.setAttribute("x", Math.max(x(s.start), GANTT.label) + 4);
      }
      measured.forEach((bar, i) => place(bar, ...s.measured[i]));
    });
    arrows();
  }

  function arrows() {
    const s = DATA.steps[selection.step];
    waits.replaceChildren(...(s ? s.waits : []).map((index) => {
      const w = DATA.steps[index];
      const [x0, y0] = [x(w.start + w.seconds), y(w.row) + GANTT.lane / 2];
      const [x1, y1] = [x(s.start), y(s.row) + GANTT.lane / 2];
      const bend = Math.max(18, Math.abs(x1 - x0) / 3);
      return svg("path", { class: "wait",
        d: `M${x0},${y0} C${x0 + bend},${y0} ${x1 - bend},${y1} ${x1},${y1}` });
    }));
  }

  function zoom(factor, at) {
    const share = (at - GANTT.label) / Math.max(1, width - GANTT.label - 26);
    const centre = view.from + Math.min(1, Math.max(0, share)) * (view.to - view.from);
    const span = Math.min(end, Math.max(end * 1e-6, (view.to - view.from) / factor));
    view.from = centre - (centre - view.from) * span / (view.to - view.from);
    view.to = view.from + span;
    keep();
  }

  function keep() {
    const span = view.to - view.from;
    view.from = Math.min(Math.max(0, view.from), end - span);
    view.to = view.from + span;
    paint();
  }

  function move(dx) {
    const time = dx / (width - GANTT.label - 26) * (view.to - view.from);
    view.from -= time;
    view.to -= time;
    keep();
  }

  navigable(root, move, zoom);
  new ResizeObserver(() => { width = root.clientWidth; paint(); }).observe(root);
  selection.parts.push((index, centre) => {
    groups.forEach((group, i) => group.classList.toggle("selected", i === index));
    const s = DATA.steps[index];
    if (s && centre !== "graph" && (s.start < view.from || s.start + s.seconds > view.to)) {
      const span = Math.max(view.to - view.from, s.seconds);
      view.from = s.start + s.seconds / 2 - span / 2;
      view.to = view.from + span;
      keep();
    } else {
      arrows();
    }
  });
  const middle = () => GANTT.label + (width - GANTT.label) / 2;
  return panel("Timeline", root, [
    ["\u2212", "Zoom out", () => zoom(1 / 1.6, middle())],
    ["+", "Zoom in", () => zoom(1.6, middle())],
    ["Fit", "Show all", () => { view.from = 0; view.to = end; paint(); }],
  ], ran ? "predicted above, measured below (each step waited for)" : "predicted");
}

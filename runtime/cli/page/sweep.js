// The page of a sweep: the sets, their curves, every point, and where they break even.

function legend() {
  return html("div", { class: "legend" }, ...DATA.sets.map((devices) =>
    html("span", {}, chip(setLabel(devices)), setLabel(devices))));
}

function fastest(batch) {
  const there = DATA.points.filter((p) => p.batch === batch && p.seconds !== null);
  return there.sort((a, b) => a.seconds - b.seconds)[0];
}

function fastestTiles() {
  const shown = DATA.batches.map((batch) => [batch, fastest(batch)]).filter(([, best]) => best);
  return html("div", { class: "tiles" }, ...shown.map(([batch, best]) =>
    tile(`Batch ${batch}`, seconds(best.seconds), setLabel(best.devices))));
}

function pointsPanel() {
  const rows = DATA.points.map((p) => {
    const name = setLabel(p.devices);
    if (p.seconds === null) {
      return html("tr", {}, cell(p.batch, true), html("td", { class: "id" }, chip(name), name),
        html("td", { class: "soft", colspan: 4 }, p.reason));
    }
    return html("tr", {}, cell(p.batch, true), html("td", { class: "id" }, chip(name), name),
      cell(seconds(p.seconds), true), cell(`${seconds(p.low)} \u2013 ${seconds(p.high)}`, true),
      cell(count(p.throughput), true), html("td", {}, Object.entries(p.shares)
        .filter(([, share]) => share > 0).map(([id, share]) => [chip(id), `${id} ${percent(share)} `])));
  });
  return panel("Points", html("div", { class: "scroll" }, html("table", {},
    head(">batch", "devices", ">latency", ">80 % interval", ">samples/s", "ops"),
    html("tbody", {}, ...rows))), [], "one run after the other");
}

function evenPanel() {
  const last = DATA.batches.at(-1);
  const said = (e) => {
    if (e.batch === null) return [cell("\u2013", true), cell(`not up to ${last}`)];
    return [cell(e.batch, true), cell(e.exact ? "" : "or less: the smallest batch swept")];
  };
  const rows = DATA.break_even.map((e) => html("tr", {},
    html("td", { class: "id" }, chip(setLabel(e.devices)), setLabel(e.devices)),
    cell(e.versus), ...said(e)));
  return panel("Break-even", html("div", { class: "scroll" }, html("table", {},
    head("devices", "faster than", ">from batch", ""), html("tbody", {}, ...rows))), [],
  "the batch from which a set is predicted to be faster, found by bisection");
}

document.body.append(html("main", {},
  html("header", {},
    html("div", { class: "grow" }, html("h1", {}, DATA.name),
      html("div", { class: "soft" }, "predicted by crossdock over batches and device sets")),
    legend(), theme()),
  fastestTiles(),
  html("div", { class: "pair" },
    curvesPanel("Latency", "dashed: break-even", (p) => [p.seconds, p.low, p.high], seconds),
    curvesPanel("Throughput", "samples a second, dashed: break-even",
      (p) => [p.throughput, p.batch / p.high, p.batch / Math.max(p.low, p.seconds / 10)], count)),
  evenPanel(),
  pointsPanel()), tip);

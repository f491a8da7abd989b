// The page: head, figures, timeline, devices, graph and details.

function tiles() {
  const launches = DATA.steps.filter((s) => s.kind === "launch");
  const copies = DATA.steps.filter((s) => s.kind === "copy");
  const moved = copies.reduce((sum, s) => sum + s.nbytes, 0);
  const alone = DATA.devices.filter((d) => d.alone !== null).sort((a, b) => a.alone - b.alone)[0];
  const gap = DATA.bound > 0 ? DATA.predicted / DATA.bound - 1 : 0;
  const shown = [
    tile("Predicted", seconds(DATA.predicted), `${seconds(DATA.low)} \u2013 ${seconds(DATA.high)}`),
    DATA.measured === null ? null
      : tile("Measured", seconds(DATA.measured), "one run, each step waited for"),
    tile("Lower bound", seconds(DATA.bound),
      gap < 0.005 ? "reached" : `plan is ${percent(gap)} above`),
    alone ? tile("Best single device", seconds(alone.alone), alone.id) : null,
    tile("Ops", launches.length, `policy ${DATA.policy}`),
    tile("Copies", copies.length, copies.length ? bytes(moved) : "nothing is moved"),
  ];
  return html("div", { class: "tiles" }, ...shown.filter(Boolean));
}

function devicesPanel() {
  const rows = DATA.devices.map((d) => html("tr", {},
    html("td", { class: "id" }, chip(d.id), d.id),
    html("td", { class: "soft" }, d.name),
    html("td", { class: "number" }, meter(d.share, d.id, percent(d.share))),
    html("td", { class: "number" }, meter(
      d.busy / Math.max(DATA.replay, 1e-12), d.id, seconds(d.busy))),
    cell(d.alone === null ? "cannot" : seconds(d.alone), true),
    cell(bytes(d.arena), true),
    cell(bytes(d.weights), true)));
  return panel("Devices", html("div", { class: "scroll" }, html("table", {},
    head("device", "name", ">ops", ">busy", ">alone", ">arena", ">weights"),
    html("tbody", {}, ...rows))), [], `weights are uploaded once for ${DATA.expectedRuns} runs`);
}

function search() {
  const list = html("datalist", { id: "names" }, ...DATA.steps.slice(0, 5000).map((s, i) =>
    html("option", { value: `#${i} ${stepTitle(s)} ${s.name}` })));
  const find = (text) => {
    const number = /^#(\d+)/.exec(text);
    if (number && DATA.steps[Number(number[1])]) return Number(number[1]);
    const low = text.trim().toLowerCase();
    if (!low) return null;
    const at = DATA.steps.findIndex((s) => `${s.op} ${s.name}`.toLowerCase().includes(low));
    return at < 0 ? null : at;
  };
  const field = html("input", { type: "search", list: "names", placeholder: "Find a step",
    "aria-label": "Find a step", onchange: (event) => select(find(event.target.value)) });
  return [field, list];
}

document.body.append(html("main", {},
  html("header", {},
    html("div", { class: "grow" }, html("h1", {}, DATA.name),
      html("div", { class: "soft" }, "placement plan by crossdock")),
    ...search(), theme()),
  tiles(),
  ganttPanel(),
  devicesPanel(),
  html("div", { class: "split" }, graphPanel(), detailsPanel())), tip);

document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") return;
  if (event.key === "Escape") select(null);
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by === undefined || selection.step === null) return;
  event.preventDefault();
  select(Math.min(DATA.steps.length - 1, Math.max(0, selection.step + by)));
});
const wanted = /^#step-(\d+)$/.exec(location.hash);
if (wanted && DATA.steps[Number(wanted[1])]) select(Number(wanted[1]));

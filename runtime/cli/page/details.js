// What is known about the selected step, or the longest ops while none is selected.

const LONGEST = 15;

function stepLinks(indices) {
  return indices.map((index) => html("a", { class: "step-link", role: "button", tabindex: "0",
    onclick: () => select(index), onkeydown: (e) => { if (e.key === "Enter") select(index); } },
  `#${index} ${DATA.steps[index].kind === "copy" ? "copy" : DATA.steps[index].op}`));
}

function candidates(s) {
  const rows = s.choices.map((c) => {
    const won = c.device === s.device;
    const can = c.seconds !== null;
    const interval = can ? `${seconds(c.low)} \u2013 ${seconds(c.high)}` : "";
    return html("tr", { class: won ? "won" : can ? "" : "cannot" },
      html("td", { class: "id" }, chip(c.device), c.device),
      html("td", {}, can ? html("div", {}, c.kernel) : null,
        html("div", { class: "faint" }, [interval, can ? c.source : "", c.reason]
          .filter(Boolean).join(" \u00b7 "))),
      cell(can ? seconds(c.seconds) : "cannot", true),
      cell(seconds(c.finish), true));
  });
  return html("table", {}, head("device", "kernel", ">takes", ">would end"),
    html("tbody", {}, ...rows));
}

function values(title, list) {
  return list.length ? [html("h4", {}, title), ...list.map((v) => html("div", {}, v))] : [];
}

function copied(s) {
  return s.src === s.dst ? ["copies", `${bytes(s.nbytes)} within ${s.dst}`]
    : ["moves", `${bytes(s.nbytes)} from ${s.src} to ${s.dst}`];
}

function stepDetails(index) {
  const s = DATA.steps[index];
  const got = stepMeasured(s);
  const pairs = [
    ["step", `#${index}`],
    ["queue", html("span", {}, chip(s.device), s.queue)],
    s.kernel ? ["kernel", s.kernel] : null,
    s.kind === "copy" ? copied(s) : null,
    ["starts", seconds(s.start)],
    ["predicted", `${seconds(s.seconds)} (${seconds(s.low)} \u2013 ${seconds(s.high)}, ${s.source})`],
    got === null ? null : ["measured", `${seconds(got)} (${ratio(got, s.seconds)} predicted)`],
    s.waits.length ? ["waits for", html("span", {}, ...stepLinks(s.waits))] : null,
    s.detail ? ["fuses", s.detail] : null,
  ].filter(Boolean);
  return [
    html("h3", {}, stepTitle(s)),
    html("div", { class: "soft" }, s.name),
    s.reason ? html("p", { class: "reason" }, s.reason) : html("p", { class: "reason" }),
    html("div", { class: "pairs" }, ...pairs.flatMap(([k, v]) =>
      [html("div", {}, k), html("div", {}, v)])),
    ...(s.choices.length ? [html("h4", {}, "Candidates"), candidates(s)] : []),
    ...(s.why ? why(s.why) : []),
    ...values("Reads", s.inputs),
    ...values("Makes", s.outputs),
  ];
}

const ratio = (got, want) => (want > 0 ? `${three(got / want)} \u00d7` : "\u2013");

function longest() {
  const order = DATA.steps.map((_, i) => i)
    .sort((a, b) => DATA.steps[b].seconds - DATA.steps[a].seconds).slice(0, LONGEST);
  const rows = order.map((index) => {
    const s = DATA.steps[index];
    return html("tr", { onclick: () => select(index) },
      cell(`#${index}`, true),
      html("td", {}, html("div", {}, chip(s.device), stepTitle(s)),
        html("div", { class: "faint" }, s.name)),
      cell(seconds(s.seconds), true),
      cell(percent(s.seconds / Math.max(DATA.replay, 1e-12)), true));
  });
  return [
    html("h3", {}, "Longest steps"),
    html("div", { class: "faint" }, "Select a step here, in the timeline or in the graph."),
    html("table", { class: "ops" }, head(">#", "step", ">takes", ">of all"),
      html("tbody", {}, ...rows)),
  ];
}

function detailsPanel() {
  const body = html("div", { id: "details" });
  const paint = (index) => {
    body.replaceChildren(...(index === null ? longest() : stepDetails(index)));
    body.scrollTop = 0;
  };
  selection.parts.push(paint);
  paint(null);
  const close = [["\u00d7", "Deselect (Esc)", () => select(null)]];
  return panel("Step", body, close, "");
}

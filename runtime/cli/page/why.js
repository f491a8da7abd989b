// Why an op runs where it does: every kernel of every device, the margin, and what would move it.

function whyRow(row) {
  const can = row.compute !== null && row.code === "ok";
  return html("tr", { class: row.chosen ? "won" : can ? "" : "cannot" },
    html("td", { class: "id" }, chip(row.device), row.device),
    html("td", {}, html("div", {}, row.kernel),
      html("div", { class: "faint" }, [can ? "" : row.code, row.reason]
        .filter(Boolean).join(" \u00b7 "))),
    ...[row.launch, row.compute, row.transferIn, row.queueWait, row.finish, row.whole]
      .map((value) => cell(value === null ? "" : seconds(value), true)),
    cell(row.room === null ? "" : bytes(row.room), true));
}

const SCOPES = { whole: "the run would end", local: "the op would end", kernel: "it would take" };

function why(w) {
  const parts = [html("h4", {}, "All kernels"), html("table", {},
    head("device", "kernel", ">launch", ">compute", ">in", ">waits", ">would end", ">run", ">free"),
    html("tbody", {}, ...w.rows.map(whyRow)))];
  if (w.margin !== null) {
    const later = w.margin >= 0 ? "later" : "sooner";
    parts.push(html("p", { class: "reason" },
      `On ${w.runnerUp} ${SCOPES[w.scope]} ${seconds(Math.abs(w.margin))} ${later}: `
      + `${three(w.sigmas)} sigma; the winner stays the winner with `
      + `${three(100 * w.confidence)} %.`));
  }
  if (w.flips.length) {
    parts.push(html("h4", {}, "Would move it"), ...w.flips.map((f) => html("div", {}, f)));
  }
  return parts;
}

// What pages are made of: panels, tiles, meters, table cells.

function panel(title, body, buttons, hint) {
  return html("section", { class: "card panel" },
    html("div", { class: "bar" },
      html("h2", {}, title), html("span", { class: "hint" }, hint),
      ...buttons.map(([text, name, run]) =>
        html("button", { type: "button", title: name, "aria-label": name, onclick: run }, text))),
    body);
}

const tile = (label, value, below) => html("div", { class: "card tile" },
  html("div", { class: "label" }, label), html("div", { class: "value" }, value),
  html("div", { class: "below" }, below));

function meter(share, device, text) {
  return [html("span", { class: "meter" }, html("span", { style: {
    width: `${Math.min(1, share) * 100}%`, background: colour(device) } })),
  html("span", { class: "share" }, text)];
}

function cell(text, number, extra) {
  return html("td", { class: `${number ? "number" : ""} ${extra || ""}`.trim() }, text);
}

const head = (...names) => html("thead", {}, html("tr", {}, ...names.map((name) =>
  html("th", name.startsWith(">") ? { class: "number" } : {}, name.replace(">", "")))));

function theme() {
  return html("button", { type: "button", onclick: () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  } }, "Light / dark");
}

"use strict";
// Sortable tables.
for (const heading of document.querySelectorAll("th")) {
  heading.tabIndex = 0;
  const sort = () => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = row => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const missing = row => row.cells[column].classList.contains("missing");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => missing(a) - missing(b) || (descending ? -1 : 1) * compare(value(a), value(b)));
    table.tBodies[0].append(...rows);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}

// The gallery. Texts go in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const control = name => document.getElementById(name);
const fill = (name, options, chosen) => {
  for (const [value, text] of options) control(name).add(new Option(text, value, false, value === chosen));
};
const sides = [["original", "original"], ...data.codecs.map(codec => [codec, codec])];
fill("left", sides, "original");
fill("right", sides, data.codecs[0] ?? "original");
fill("budget", data.budgets.map(budget => [String(budget), `${budget} bytes`]), String(data.budgets[0]));
fill("order", [["name", "by name"],
  ...data.metrics.map(metric => [`worst:${metric.name}`, `worst ${metric.label} first`]),
  ...data.metrics.map(metric => [`against:${metric.name}`, `worst ${metric.label} against the left first`])], "name");

const file = (image, side) => image.files[side]?.[control("budget").value];

function picture(image, side) {
  const element = document.createElement("img");
  element.alt = side;
  const source = side === "original" ? image.original : file(image, side)?.uri;
  if (source) element.src = source;
  return element;
}

function facts(image, side) {
  if (side === "original") return "original";
  const found = file(image, side);
  if (!found?.uri) return `${side}: no file (${found?.reason ?? "not measured"})`;
  const values = data.metrics.filter(metric => found[metric.name] != null)
    .map(metric => `${metric.label} ${found[metric.name].toFixed(metric.digits)}`);
  return `${side}: ${[`${found.bytes} B`, ...values].join(", ")}`;
}

function card(image) {
  const [left, right] = [control("left").value, control("right").value];
  const figure = document.createElement("figure");
  const pair = document.createElement("div");
  pair.className = "pair";
  pair.style.aspectRatio = `${image.width} / ${image.height}`;
  const under = picture(image, right), over = picture(image, left);
  over.className = "over";
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", `${image.name}: ${left} left, ${right} right`);
  slider.addEventListener("input", () => pair.style.setProperty("--split", `${slider.value}%`));
  pair.append(under, over, slider);
  const caption = document.createElement("figcaption");
  const name = document.createElement("b");
  name.textContent = image.name;
  caption.append(name);
  for (const side of new Set([left, right])) {
    const line = document.createElement("div");
    line.textContent = facts(image, side);
    caption.append(line);
  }
  figure.append(pair, caption);
  return figure;
}

function badness(image) {
  const [kind, name] = control("order").value.split(":");
  const metric = data.metrics.find(metric => metric.name === name);
  const value = side => file(image, side)?.[name];
  const [ours, other] = [value(control("right").value), kind === "against" ? value(control("left").value) : 0];
  if (ours == null || other == null) return -Infinity;
  return (metric.higher ? -1 : 1) * (ours - other);
}

function show() {
  const images = [...data.images];
  if (control("order").value !== "name") {
    const worst = new Map(images.map(image => [image, badness(image)]));
    images.sort((a, b) => worst.get(b) - worst.get(a) || a.name.localeCompare(b.name));
  }
  control("sides").textContent = `${control("left").value} on the left, ${control("right").value} on the right`;
  control("cards").replaceChildren(...images.map(card));
}
control("controls").addEventListener("change", show);
show();

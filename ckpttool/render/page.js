"use strict";
// What a page can do beyond being read: tooltips, other values in a heat map, sorting and searching of tables.
// Text reaches the page as text nodes and attribute values alone, never as markup.
(() => {
  document.documentElement.classList.add("js");
  const SVG = "http://www.w3.org/2000/svg";
  const STEPS = 9;
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);

  const BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588";
  function show(text, x, y, bars = "") {
    tip.textContent = text;
    if (bars) {
      const drawn = document.createElement("span");
      drawn.setAttribute("aria-hidden", "true");
      drawn.textContent = [...bars].map((n) => BARS[n]).join("");
      tip.append("\n", drawn);
    }
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - box.width - 12 : x + 16;
    const top = y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }
  const hide = () => { tip.hidden = true; };

  // Marks that say what they are.
  for (const chart of document.querySelectorAll(".chart:not(.map)")) {
    chart.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[aria-label]");
      if (mark && mark.closest("svg") && mark.tagName !== "svg") show(mark.getAttribute("aria-label").replaceAll("; ", "\n"), event.clientX, event.clientY);
      else hide();
    });
    chart.addEventListener("pointerleave", hide);
  }

  // Heat maps: `data` holds rows, columns, and a grid of numbers for each value that can be shown.
  function number(value, view) {
    if (value === null || value === undefined) return null;
    const text = value.toFixed(view.digits).replace("-", "\u2212");
    return view.diverging && value > 0 ? `+${text}` : text;
  }
  function range(view, flagged) {
    const known = view.values.flatMap((row, r) => row.filter((v, c) => v !== null && !(`${r},${c}` in flagged)));
    if (!known.length) return null;
    let low = known[0], high = known[0];
    for (const v of known) { if (v < low) low = v; if (v > high) high = v; }
    const most = Math.max(Math.abs(low), Math.abs(high));
    return view.diverging ? [-most, most] : [low, high];
  }
  function step(value, [low, high]) {
    if (high <= low) return STEPS - 1 >> 1;
    return Math.min(STEPS - 1, Math.floor((value - low) / (high - low) * STEPS));
  }
  function legend(list, view, ends) {
    if (!ends) return list.replaceChildren();
    const text = (value) => { const s = document.createElement("li"); s.textContent = number(value, view); return s; };
    const swatches = view.ramp.map((colour) => {
      const item = document.createElement("span");
      item.className = "swatch";
      item.style.background = colour;
      return item;
    });
    const ramp = document.createElement("li");
    ramp.append(...swatches);
    list.replaceChildren(text(ends[0]), ramp, text(ends[1]));
  }
  for (const map of document.querySelectorAll(".map")) {
    const data = JSON.parse(document.getElementById(map.dataset.map).textContent);
    const svg = map.querySelector("svg");
    const cells = svg.querySelectorAll(".cells path");
    const figure = map.closest("figure");
    const select = figure.querySelector("select");
    const [x0, y0, wide, high] = data.grid;
    const frame = document.createElementNS(SVG, "rect");
    for (const [key, value] of Object.entries({ width: wide, height: high, fill: "none", stroke: "var(--text)", "stroke-width": 2, visibility: "hidden" })) frame.setAttribute(key, value);
    svg.append(frame);
    let at = [0, 0];
    function point(row, column) {
      at = [row, column];
      frame.setAttribute("x", x0 + column * wide);
      frame.setAttribute("y", y0 + row * high);
      frame.setAttribute("visibility", "visible");
      const why = data.flagged[`${row},${column}`];
      const lines = data.views.map((view) => `${view.name}: ${number(view.values[row][column], view) ?? (why ? "none" : data.blank[1])}`);
      if (why) lines.unshift(why);
      if (data.bars?.[row][column]) lines.push(`${data.spread}:`);
      return [`${data.row} ${data.rows[row]}, ${data.column} ${data.columns[column]}`, ...lines].join("\n");
    }
    function leave() { frame.setAttribute("visibility", "hidden"); hide(); }
    map.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const column = Math.floor(((event.clientX - box.left) * scale - x0) / wide);
      const row = Math.floor(((event.clientY - box.top) * scale - y0) / high);
      if (row < 0 || column < 0 || row >= data.rows.length || column >= data.columns.length) leave();
      else show(point(row, column), event.clientX, event.clientY, data.bars?.[row][column]);
    });
    map.addEventListener("pointerleave", leave);
    map.addEventListener("blur", leave);
    map.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Escape") leave();
      if (!move) return;
      event.preventDefault();
      const hidden = frame.getAttribute("visibility") === "hidden";
      const [row, column] = hidden ? at : [at[0] + move[0], at[1] + move[1]];
      const inside = (n, list) => Math.min(Math.max(n, 0), list.length - 1);
      const text = point(inside(row, data.rows), inside(column, data.columns));
      const box = frame.getBoundingClientRect();
      show(text, box.right, box.bottom, data.bars?.[at[0]][at[1]]);
    });
    select?.addEventListener("change", () => {
      const view = data.views[select.selectedIndex];
      const ends = range(view, data.flagged);
      view.values.flat().forEach((value, i) => {
        if (`${Math.floor(i / data.columns.length)},${i % data.columns.length}` in data.flagged) return;
        cells[i].setAttribute("fill", value === null ? data.blank[0] : view.ramp[step(value, ends)]);
      });
      legend(figure.querySelector(".ramp"), view, ends);
    });
  }

  // One of several figures at a time.
  for (const tabs of document.querySelectorAll("[data-tabs]")) {
    const shown = [...document.querySelectorAll(`[data-tab="${CSS.escape(tabs.dataset.tabs)}"]`)];
    const select = tabs.querySelector("select");
    const change = () => shown.forEach((figure, i) => { figure.hidden = i !== select.selectedIndex; });
    select.addEventListener("change", change);
    change();
  }

  // Tables.
  const key = (cell, numeric) => cell.dataset.v !== undefined ? Number(cell.dataset.v) : numeric ? NaN : cell.textContent;
  const words = new Intl.Collator("en", { numeric: true });
  for (const table of document.querySelectorAll("table[data-sort]")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending" || (!head.hasAttribute("aria-sort") && head.classList.contains("num"));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const keyed = [...body.rows].map((row) => [key(row.cells[column], head.classList.contains("num")), row]);
        const without = keyed.filter(([k]) => Number.isNaN(k));  // numbers that are not there come last, either way
        const known = keyed.filter(([k]) => !Number.isNaN(k));
        const compare = known.every(([k]) => typeof k === "number") ? ([a], [b]) => a - b : ([a], [b]) => words.compare(a, b);
        known.sort(down ? (a, b) => compare(b, a) : compare);
        body.append(...[...known, ...without].map(([, row]) => row));
      });
    });
  }
  for (const input of document.querySelectorAll("input[type=search]")) {
    const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const count = document.getElementById(input.getAttribute("aria-describedby"));
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      rows.forEach((row, i) => {
        row.hidden = !wanted.every((word) => texts[i].includes(word));
        found += row.hidden ? 0 : 1;
      });
      count.textContent = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    });
  }
})();

"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, values) => Object.assign(document.createElement(tag), values);
  const rows = (spec) => spec.data?.values ?? spec.concat.flatMap((panel) => panel.data.values);
  let picked = null, views = new Map();

  // Charts: as wide as the page; panels side by side where there is room.
  function fitted(spec, width) {
    const columns = Math.min(spec.columns || 3, Math.max(1, Math.floor(width / 270)));
    const longest = Math.max(0, ...rows(spec).map((row) => (row.name || "").length));
    spec.config.legend.columns = Math.max(1, Math.floor((width - 60) / (7 * Math.min(longest, 36) + 30)));
    if (width < 520) spec.config.axis.labelLimit = 100;
    const panels = spec.facet ? [spec.spec] : spec.concat;
    panels?.forEach((each) => (each.width = Math.floor((width - 60) / columns) - (spec.concat ? 58 : 22)));
    return panels ? { ...spec, columns } : { ...spec, width: Math.min(width, 980), autosize: { type: "fit-x", contains: "padding" } };
  }
  async function draw(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const names = new Set(rows(spec).map((row) => row.name));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const options = { renderer: "svg", ast: true, actions: false, tooltip: { theme: dark ? "dark" : "light" } };
    const width = document.querySelector("h1").clientWidth;
    views.get(figure)?.view.finalize();
    const { view } = await vegaEmbed(figure.querySelector(".plot"), fitted(spec, width), options);
    views.set(figure, { view, names });
    view.addEventListener("click", (event, item) => item?.datum && names.has(item.datum.name) && pick(item.datum.name));
    const legend = (_, name) => name !== picked && (name || picked) && show(name);
    try { view.addSignalListener("picked_name_legend", legend); } catch { /* one method: no legend */ }
    if (picked) highlight({ view, names });
  }
  const figures = all("figure.chart"), folded = (figure) => figure.closest("details:not([open])");
  figures.filter((each) => !folded(each)).forEach(draw);
  // Figures of folded sections are drawn a little later, so that they are there when a section is opened.
  const later = figures.filter(folded);
  addEventListener("load", () => setTimeout(() => later.forEach(draw), 300));
  let timer, width = innerWidth;
  const redraw = () => width !== innerWidth && ((width = innerWidth), figures.forEach(draw));
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(redraw, 150); });

  // One method is highlighted in all charts and tables.
  const buttons = all("[data-method]");
  function highlight({ view, names }) {
    const name = names.has(picked) ? picked : null;
    try { view.signal("picked_name_legend", name).runAsync(); } catch { /* a chart without this selection */ }
  }
  function show(name) {
    picked = name;
    views.forEach(highlight);
    buttons.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.method === name)));
    const others = new Set(buttons.map((each) => each.dataset.method).filter((each) => name && each !== name));
    all("tbody tr").forEach((row) => row.classList.toggle("faded", others.has(row.cells[0].textContent)));
  }
  const pick = (name) => show(name === picked ? null : name);
  all(".methods").forEach((bar) => (bar.hidden = false));
  buttons.forEach((each) => each.addEventListener("click", () => pick(each.dataset.method)));

  // Tables: a click on a header sorts, a text field filters.
  const value = (cell) => {
    const text = cell.textContent.replace(/[,\s]/g, "").replace("−", "-"), number = parseFloat(text.replace(/^[<p=]+/, ""));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  all("table").forEach((table) => {
    const body = table.tBodies[0], rows = [...body.rows];
    if (rows.length < 3) return;
    table.tHead.classList.add("sortable");
    [...table.tHead.rows[0].cells].forEach((head, k) => {
      const button = make("button", { type: "button", textContent: head.textContent || "name" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        [...head.parentNode.cells].forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows.sort((a, b) => (down ? -1 : 1) * order(value(a.cells[k]), value(b.cells[k])));
        body.append(...rows);
      });
    });
    if (rows.length < 6) return;
    const field = make("input", { type: "search", placeholder: "Filter rows", ariaLabel: "Filter rows" });
    field.addEventListener("input", () => rows.forEach((row) => {
      row.hidden = !row.textContent.toLowerCase().includes(field.value.toLowerCase());
    }));
    table.parentNode.before(field);
  });

  // Commands are copied; a link to a section opens it; all sections are printed.
  all(".command").forEach((each) => {
    const button = make("button", { type: "button", textContent: "Copy" });
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(each.querySelector("pre").textContent);
      button.textContent = "Copied";
    });
    each.append(button);
  });
  const open = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.setAttribute("open", "");
  ["hashchange", "load"].forEach((each) => addEventListener(each, open));
  addEventListener("beforeprint", () => all("details.section").forEach((each) => (each.open = true)));
})();

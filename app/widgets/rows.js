// A list box: rows with a dot, a title, a figure and a second line. Rows keep their element, so
// that neither the scroll position nor the focus is lost when figures change.

const STYLE = `
.list { height: 100%; overflow-y: auto; outline: none; box-sizing: border-box; }
.list:focus-visible { box-shadow: inset 0 0 0 2px var(--fw-accent); border-radius: 6px; }
.row { display: grid; grid-template-columns: 14px 1fr auto; gap: 0 8px; padding: 6px 12px 6px 10px;
  cursor: pointer; border-left: 3px solid transparent; font-size: 13px; line-height: 1.4; }
.row:hover { background: var(--fw-raised); }
.row[aria-selected="true"] { background: var(--fw-raised); border-left-color: var(--fw-accent); }
.dot { width: 8px; height: 8px; border-radius: 50%; margin-top: 5px; box-sizing: border-box;
  border: 1.6px solid currentColor; }
.dot.filled { background: currentColor; }
.idle { color: var(--fw-muted); } .busy { color: var(--fw-accent); } .ask { color: var(--fw-warn); }
.bad { color: var(--fw-bad); } .done { color: var(--fw-accent); }
.title { color: var(--fw-text); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.title span { color: var(--fw-muted); font-size: 12px; margin-left: 6px; }
.figure { font-variant-numeric: tabular-nums; color: var(--fw-muted); white-space: nowrap; }
.figure.over { color: var(--fw-bad); font-weight: 600; }
.detail { grid-column: 2 / 4; color: var(--fw-muted); font-size: 12px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.marked { box-shadow: inset -3px 0 0 var(--fw-warn); }
.empty { color: var(--fw-muted); font-size: 13px; line-height: 1.5; padding: 10px 14px; margin: 0; }
`;

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function made(id) {
  const row = document.createElement("div");
  row.className = "row";
  row.id = `row-${id}`;
  row.dataset.id = id;
  row.setAttribute("role", "option");
  const parts = {};
  for (const [name, tag] of [["dot", "i"], ["title", "div"], ["figure", "div"], ["detail", "div"]]) {
    parts[name] = document.createElement(tag);
    parts[name].className = name;
    row.append(parts[name]);
  }
  parts.text = document.createTextNode("");
  parts.status = document.createElement("span");
  parts.title.append(parts.text, parts.status);
  row.parts = parts;
  return row;
}

function fill(row, data, chosen) {
  const { dot, text, status, figure, detail } = row.parts;
  dot.className = `dot ${data.tone}${data.tone === "done" ? " filled" : ""}`;
  put(text, data.title);
  put(status, data.status);
  put(figure, data.figure);
  figure.classList.toggle("over", data.over);
  put(detail, data.detail);
  row.classList.toggle("marked", data.marked);
  row.setAttribute("aria-selected", data.id === chosen);
}

export function render({ model, el }) {
  el.style.height = "100%";
  const style = document.createElement("style");
  style.textContent = STYLE;
  const list = document.createElement("div");
  list.className = "list";
  list.tabIndex = 0;
  list.setAttribute("role", "listbox");
  const empty = document.createElement("p");
  empty.className = "empty";
  el.append(style, list);
  const kept = new Map();

  function draw() {
    list.setAttribute("aria-label", model.label);
    put(empty, model.empty);
    const wanted = new Set(model.rows.map((r) => r.id));
    for (const [id, row] of kept) {
      if (!wanted.has(id)) {
        row.remove();
        kept.delete(id);
      }
    }
    model.rows.forEach((data, place) => {
      const row = kept.get(data.id) ?? made(data.id);
      kept.set(data.id, row);
      if (list.children[place] !== row) list.insertBefore(row, list.children[place] ?? null);
      fill(row, data, model.chosen);
    });
    if (model.rows.length) empty.remove();
    else list.append(empty);
    const row = kept.get(model.chosen);
    if (row) list.setAttribute("aria-activedescendant", row.id);
    else list.removeAttribute("aria-activedescendant");
  }

  function show() {
    draw();
    kept.get(model.chosen)?.scrollIntoView({ block: "nearest" });
  }

  function move(by) {
    const ids = model.rows.map((r) => r.id);
    if (!ids.length) return;
    const here = ids.indexOf(model.chosen);
    model.chosen = ids[here < 0 ? 0 : Math.min(Math.max(here + by, 0), ids.length - 1)];
  }

  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) model.chosen = Number(row.dataset.id);
  });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    move(by);
  });
  model.on("rows", draw);
  model.on("empty", draw);
  model.on("chosen", show);
  show();
}

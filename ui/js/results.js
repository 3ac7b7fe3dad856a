// The problems of the chosen runs. The value is {head, columns, rows: [{id, intent, marks, said}], from, total, shown};
// texts become text nodes, never HTML. Each row says in words who solved it; the cells show the same at a glance.
const body = element.querySelector("ol");
const line = element.querySelector(".found");
const keys = element.querySelector(".keys");
const pager = element.querySelector(".pager");
const NAMES = { solved: "solved", wrong: "not solved", failed: "no answer", unscored: "not scored", missing: "not run" };

function span(name, text) {
  const node = document.createElement("span");
  node.className = name;
  node.textContent = text;
  return node;
}

function cells(marks, columns) {
  const strip = span("cells", "");
  strip.setAttribute("aria-hidden", "true");
  marks.forEach((mark, place) => {
    const cell = span(mark, "");
    cell.title = columns[place] + ": " + NAMES[mark];
    strip.append(cell);
  });
  return strip;
}

function row(data, value) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  if (data.id === value.shown) button.setAttribute("aria-current", "true");
  button.append(span("intent", data.intent), cells(data.marks, value.columns), span("verdict", data.said));
  button.addEventListener("click", () => trigger("select", { id: data.id }));
  item.append(button);
  return item;
}

function page(label, from, value) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.disabled = from < 0 || from >= value.total;
  button.addEventListener("click", () => trigger("select", { from }));
  return button;
}

function show() {
  const value = props.value || { head: "", columns: [], rows: [], from: 0, total: 0, size: 25 };
  line.textContent = value.head;
  element.hidden = value.columns.length === 0;
  keys.hidden = value.rows.length === 0;
  body.replaceChildren(...value.rows.map((data) => row(data, value)));
  body.start = value.from + 1;
  const fits = value.total <= value.size;
  pager.replaceChildren(...(fits ? [] : [
    page("Previous", value.from - value.size, value),
    span("quiet", `${value.from + 1} to ${value.from + value.rows.length} of ${value.total}`),
    page("Next", value.from + value.size, value),
  ]));
}
watch("value", show);
show();

// The problems of the chosen runs. The value is {head, columns, rows: [{id, intent, marks, said}], from, total, shown};
// texts become text nodes, never HTML. Each row names the methods that solved it; the cells show the same in colour.
const body = element.querySelector("ol");
const countText = element.querySelector(".result-count");
const legend = element.querySelector(".legend");
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
  marks.forEach((mark, index) => {
    const cell = span(mark, "");
    cell.title = columns[index] + ": " + NAMES[mark];
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

function pagerButton(label, from, value) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.disabled = from < 0 || from >= value.total;
  button.addEventListener("click", () => trigger("select", { from }));
  return button;
}

function show() {
  const value = props.value || { head: "", columns: [], rows: [], from: 0, total: 0, size: 25 };
  countText.textContent = value.head;
  element.hidden = value.columns.length === 0;
  legend.hidden = value.rows.length === 0;
  body.replaceChildren(...value.rows.map((data) => row(data, value)));
  body.start = value.from + 1;
  const fits = value.total <= value.size;
  pager.replaceChildren(...(fits ? [] : [
    pagerButton("Previous", value.from - value.size, value),
    span("muted", `${value.from + 1} to ${value.from + value.rows.length} of ${value.total}`),
    pagerButton("Next", value.from + value.size, value),
  ]));
}
watch("value", show);
show();

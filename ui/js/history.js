// The runs of this browser. The value is a list of {when, intent, verdict, shown}; texts become text nodes, never HTML.
const list = element.querySelector("ol");

function show() {
  const runs = props.value || [];
  list.replaceChildren(...runs.map((run, index) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    if (run.shown) button.setAttribute("aria-current", "true");
    for (const part of ["when", "intent", "verdict"]) {
      const span = document.createElement("span");
      span.className = part;
      span.textContent = run[part];
      button.append(span);
    }
    button.addEventListener("click", () => trigger("select", { index }));
    item.append(button);
    return item;
  }));
  element.querySelector(".muted").hidden = runs.length > 0;
}
watch("value", show);
show();

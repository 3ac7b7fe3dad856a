// Method chips. The value is a list of {name, label, hint}; texts become text nodes, never HTML.
const list = element.querySelector("ul");

function show() {
  list.replaceChildren(...(props.value || []).map((chip, index) => {
    const item = document.createElement("li");
    const remove = document.createElement("button");
    item.textContent = chip.label;
    item.title = chip.hint;
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", "Remove " + chip.label);
    remove.addEventListener("click", () => {
      props.value = props.value.filter((_, other) => other !== index);
      show();
      (list.querySelectorAll("button")[Math.max(0, index - 1)] || list).focus();
    });
    item.append(remove);
    return item;
  }));
}
watch("value", show);
show();

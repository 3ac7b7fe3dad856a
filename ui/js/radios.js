// Gradio gives every radio button a name of its own. With one name a group, arrow keys move within it and a screen
// reader says "2 of 5"; the group is called what stands above it.
const page = element.closest(".tabitem") || document;

function group() {
  for (const field of page.querySelectorAll("fieldset:not([role])")) {
    const radios = field.querySelectorAll("input[type=radio]");
    if (!radios.length) continue;
    const title = field.querySelector("[data-testid=block-info]");
    field.setAttribute("role", "radiogroup");
    if (title) field.setAttribute("aria-label", title.textContent.trim());
    for (const radio of radios) radio.name = `${field.id || "group"}-choice`;
  }
}

group();
new MutationObserver(group).observe(page, { childList: true, subtree: true });

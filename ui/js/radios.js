// Gradio gives every radio button a name of its own. With one name per group, arrow keys move within the group and a
// screen reader counts its buttons ("2 of 5"); the group is labelled with the title above it.
const page = element.closest(".tabitem") || document;

function labelRadioGroups() {
  for (const field of page.querySelectorAll("fieldset:not([role])")) {
    const radios = field.querySelectorAll("input[type=radio]");
    if (!radios.length) continue;
    const title = field.querySelector("[data-testid=block-info]");
    field.setAttribute("role", "radiogroup");
    if (title) field.setAttribute("aria-label", title.textContent.trim());
    for (const radio of radios) radio.name = `${field.id || "group"}-choice`;
  }
}

labelRadioGroups();
new MutationObserver(labelRadioGroups).observe(page, { childList: true, subtree: true });

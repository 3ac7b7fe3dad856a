// Keyboard shortcuts of the Arena: each presses the visible button that names it, except while the focus is in a field.
const KEYS = {
  1: "arena-left", 2: "arena-right", 3: "arena-tie", 4: "arena-bad", r: "arena-run", n: "arena-next",
};
const TYPING = "input, textarea, select, [contenteditable=true], [role=listbox], [role=combobox]";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest?.(TYPING)) return;
  const button = document.getElementById(KEYS[event.key.toLowerCase()]);
  if (!button || button.disabled || !button.getClientRects().length) return;
  event.preventDefault();
  button.click();
});

// Screen readers announce the shortcut of a button.
function setShortcutLabels() {
  for (const [key, name] of Object.entries(KEYS)) {
    document.getElementById(name)?.setAttribute("aria-keyshortcuts", key);
  }
}
new MutationObserver(setShortcutLabels).observe(document.querySelector("#arena-actions") || document.body, {
  childList: true, subtree: true,
});
setShortcutLabels();

// The arena's keys. They press the buttons that say them, while these are to be seen and nobody is typing.
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

// A reader of the screen hears which key presses a button.
function announce() {
  for (const [key, name] of Object.entries(KEYS)) {
    document.getElementById(name)?.setAttribute("aria-keyshortcuts", key);
  }
}
new MutationObserver(announce).observe(document.querySelector("#arena-actions") || document.body, {
  childList: true, subtree: true,
});
announce();

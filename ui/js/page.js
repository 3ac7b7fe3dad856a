// Ctrl+Enter (Cmd+Enter) anywhere on the page runs the question.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !event.target.closest?.("#compare")) return;
  const run = document.querySelector("#run");
  if (run && run.getClientRects().length) {
    event.preventDefault();
    run.click();
  }
});

// A dropdown that can be searched holds the last choice as text: whoever clicks into it wants to replace it, not to
// type behind it.
document.addEventListener("focusin", (event) => {
  if (event.target.matches?.("#compare input[role=combobox]")) setTimeout(() => event.target.select(), 0);
});

// The address names the tab that is open, so that it can be kept and sent; the window's title follows. `?tab=results`
// opens that tab when the page has come up; until then the tab that stands first leaves the address alone.
let wantedTab = new URL(location.href).searchParams.get("tab");
if (!/^[a-z]+$/.test(wantedTab || "")) wantedTab = null;

window.peftArenaTab = (name) => {
  if (wantedTab && wantedTab !== name) return;
  wantedTab = null;
  const address = new URL(location.href);
  if (name === "compare") address.searchParams.delete("tab");
  else address.searchParams.set("tab", name);
  history.replaceState(history.state, "", address);
  document.title = "Peft Arena · " + name[0].toUpperCase() + name.slice(1);
};

window.peftArenaOpen = () => {
  const button = wantedTab && document.querySelector(`#tab-${wantedTab}-button`);
  if (button) button.click();
  else { wantedTab = null; window.peftArenaTab("compare"); }
};

// Opens a page by its name, as a click on its tab does.
window.peftArenaGo = (name) => document.querySelector(`#tab-${name}-button`)?.click();

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

// Chromium lets the keyboard into a list that scrolls, and Gradio takes a dropdown's list away as the focus leaves its
// field: whoever tabs on would land nowhere.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Tab" || !event.target.matches?.("input[role=combobox]")) return;
  document.querySelectorAll("ul[role=listbox]").forEach((list) => { list.tabIndex = -1; });
}, true);

// The address names the tab that is open, so that it can be kept and sent; the window's title follows. `?tab=results`
// opens that tab when the page has come up; until then the tab that stands first leaves the address alone.
let wantedTab = new URL(location.href).searchParams.get("tab");
if (!/^[a-z]+$/.test(wantedTab || "")) wantedTab = null;

window.promptOrTuneTab = (name) => {
  if (wantedTab && wantedTab !== name) return;
  wantedTab = null;
  const address = new URL(location.href);
  if (name === "compare") address.searchParams.delete("tab");
  else address.searchParams.set("tab", name);
  history.replaceState(history.state, "", address);
  document.title = "Prompt or Tune · " + name[0].toUpperCase() + name.slice(1);
};

window.promptOrTuneOpen = () => {
  const button = wantedTab && document.querySelector(`#tab-${wantedTab}-button`);
  if (button) button.click();
  else { wantedTab = null; window.promptOrTuneTab("compare"); }
};

// What else a page wants in the address, as {name: values}; another page's part of it stays as it is.
window.promptOrTuneReadAddress = (names) => {
  const found = new URL(location.href).searchParams;
  return Object.fromEntries(names.map((name) => [name, found.getAll(name)]));
};

window.promptOrTuneWriteAddress = (names, values) => {
  const address = new URL(location.href);
  names.forEach((name, place) => {
    address.searchParams.delete(name);
    [values[place] ?? ""].flat().forEach((value) => value && address.searchParams.append(name, value));
  });
  history.replaceState(history.state, "", address);
};

// The first thing the keyboard meets: a way past header and tabs, to the page that is open.
document.documentElement.lang = "en";
function addSkip() {
  const skip = document.createElement("a");
  skip.id = "skip";
  skip.href = "#pages";
  skip.textContent = "Skip to the page";
  skip.addEventListener("click", (event) => {
    event.preventDefault();
    const panel = Array.from(document.querySelectorAll("[role=tabpanel]")).find((each) => each.getClientRects().length);
    if (!panel) return;
    panel.tabIndex = -1;
    panel.focus();
  });
  document.body.prepend(skip);
}
if (document.body) addSkip();
else document.addEventListener("DOMContentLoaded", addSkip);

// Opens a page by its name, as a click on its tab does.
window.promptOrTuneGo = (name) => document.querySelector(`#tab-${name}-button`)?.click();

// What a person did on the Compare page stays in this browser and comes back when the page does. Storage may be full
// or closed to us (a frame of another site): then there is nothing to keep, and everything else works.
const KEPT = ["fields", "chosen", "runs", "shown", "seen"];
const MOST_RUNS = 20;
const MOST_LETTERS = 2000000;
let keeping = false;

function stored(name) {
  try {
    return JSON.parse(localStorage.getItem("prompt-or-tune." + name));
  } catch {
    return null;
  }
}

window.promptOrTuneStore = (name, value) => {
  try {
    localStorage.setItem("prompt-or-tune." + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
};

window.promptOrTuneKept = () => Object.fromEntries(KEPT.map((name) => [name, stored(name)]));

// Fields that change before they were filled from the storage hold what a new page begins with.
window.promptOrTuneKeeping = (names, values) => {
  keeping = true;
  window.promptOrTuneKeep(names, values);
};

window.promptOrTuneKeep = (names, values) => {
  if (keeping) window.promptOrTuneStore("fields", Object.fromEntries(names.map((name, place) => [name, values[place]])));
};

window.promptOrTuneKeepRun = (records) => {
  const before = stored("runs");
  const runs = [records, ...(Array.isArray(before) ? before : [])].slice(0, MOST_RUNS);
  // The oldest go first when there is no room for all.
  while (runs.length && (JSON.stringify(runs).length > MOST_LETTERS || !window.promptOrTuneStore("runs", runs))) runs.pop();
  window.promptOrTuneStore("shown", records[0].created);
};

window.promptOrTuneForget = () => {
  const question = "Forget your question, your settings and your runs? They are kept in this browser alone.";
  if (!confirm(question)) return;
  KEPT.forEach((name) => localStorage.removeItem("prompt-or-tune." + name));
  location.href = location.pathname;
};

// The introduction is for a first visit: gone with the first run, and back when it is asked for.
window.promptOrTuneWelcome = (wanted) => {
  document.documentElement.classList.toggle("pa-known", !wanted);
  window.promptOrTuneStore("seen", !wanted);
  if (wanted) document.querySelector("#run-example")?.focus();
};
document.documentElement.classList.toggle("pa-known", stored("seen") === true);

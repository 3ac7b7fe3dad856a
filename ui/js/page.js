// Functions of all pages, in window.promptOrTune: tabs, the URL, downloads and the storage of the browser.
window.promptOrTune = {};

// Ctrl+Enter (Cmd+Enter) anywhere on the Compare page presses Run.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !event.target.closest?.("#compare")) return;
  const run = document.querySelector("#run");
  if (run && run.getClientRects().length) {
    event.preventDefault();
    run.click();
  }
});

// A searchable dropdown holds its last choice as text: select it on focus, so that typing replaces it.
document.addEventListener("focusin", (event) => {
  if (event.target.matches?.("#compare input[role=combobox]")) setTimeout(() => event.target.select(), 0);
});

// Chromium moves the keyboard focus into a list that scrolls, and Gradio removes a dropdown's list when the focus
// leaves its field. Without this, Tab would move the focus to an element that is removed at once.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Tab" || !event.target.matches?.("input[role=combobox]")) return;
  document.querySelectorAll("ul[role=listbox]").forEach((list) => { list.tabIndex = -1; });
}, true);

// The URL names the open tab, so that it can be bookmarked and sent; the title of the window follows.
// `?tab=results` opens that tab when the page is loaded; until then the first tab does not change the URL.
let wantedTab = new URL(location.href).searchParams.get("tab");
if (!/^[a-z]+$/.test(wantedTab || "")) wantedTab = null;

// The page is asked which tab is selected: the event of the first tab may come after that of the wanted one.
function selectedTab() {
  const button = document.querySelector("[id^=tab-][role=tab][aria-selected=true]");
  return button?.id.match(/^tab-([a-z]+)-button$/)?.[1];
}

function showSelectedTab() {
  const name = selectedTab();
  if (!name || (wantedTab && wantedTab !== name)) return;
  wantedTab = null;
  const url = new URL(location.href);
  if (name === "compare") url.searchParams.delete("tab");
  else url.searchParams.set("tab", name);
  history.replaceState(history.state, "", url);
  document.title = "Prompt or Tune · " + name[0].toUpperCase() + name.slice(1);
}
window.promptOrTune.onTabSelected = () => setTimeout(showSelectedTab, 50);  // the event may come before the change

// Tries again until the tab is selected: when the page has much to do, its tabs are not there yet, or miss a click.
window.promptOrTune.openTabFromUrl = (attempts = 50) => {
  const button = wantedTab && document.querySelector(`#tab-${wantedTab}-button`);
  const unknown = !button && document.querySelector("#tab-compare-button");
  if (unknown || !attempts) wantedTab = null;
  if (wantedTab && selectedTab() !== wantedTab) {
    button?.click();
    setTimeout(window.promptOrTune.openTabFromUrl, 200, attempts - 1);
  } else {
    showSelectedTab();
  }
};

// Opens a tab by its name, as a click on it does.
window.promptOrTune.openTab = (name) => document.querySelector(`#tab-${name}-button`)?.click();

// The parameters of one page in the URL, as {name: values}; those of other pages are left as they are.
window.promptOrTune.readUrlState = (names) => {
  const parameters = new URL(location.href).searchParams;
  return Object.fromEntries(names.map((name) => [name, parameters.getAll(name)]));
};

window.promptOrTune.writeUrlState = (names, values) => {
  const url = new URL(location.href);
  names.forEach((name, index) => {
    url.searchParams.delete(name);
    [values[index] ?? ""].flat().forEach((value) => value && url.searchParams.append(name, value));
  });
  history.replaceState(history.state, "", url);
};

// Saves a file that Gradio serves: {url, orig_name}.
window.promptOrTune.downloadFile = (file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "adapter.zip";
  document.body.append(link);
  link.click();
  link.remove();
};

// The first element in the tab order: a link past the header and the tabs, to the page that is open.
document.documentElement.lang = "en";
function addSkipLink() {
  const link = document.createElement("a");
  link.id = "skip";
  link.href = "#pages";
  link.textContent = "Skip to the page";
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const panels = Array.from(document.querySelectorAll("[role=tabpanel]"));
    const panel = panels.find((candidate) => candidate.getClientRects().length);
    if (!panel) return;
    panel.tabIndex = -1;
    panel.focus();
  });
  document.body.prepend(link);
}
if (document.body) addSkipLink();
else document.addEventListener("DOMContentLoaded", addSkipLink);

// The storage of the browser: the fields and the runs of the Compare page, read back when the page is loaded again.
// Storage may be full or denied (a frame of another site): then nothing is stored, and everything else works.
const STORAGE_PREFIX = "prompt-or-tune.";
const STORED_KEYS = ["fields", "chosen", "runs", "shown", "seen"];
const MAX_RUNS = 20;
// The server reads requests of at most 1 MB (MAX_JSON_BYTES of ui/access/bodies.py).
const MAX_BYTES = 900000;
let saving = false;

// An earlier version of the product, named Peft Arena, stored the same values under other keys.
function renameOldKeys() {
  const renamed = STORED_KEYS.map((name) => ["peft-arena." + name, STORAGE_PREFIX + name]);
  for (const [before, after] of [...renamed, ["peft-arena-duel", "prompt-or-tune-duel"]]) {
    const value = localStorage.getItem(before);
    if (value === null) continue;
    // Removed first: storage that is nearly full has no room for both.
    localStorage.removeItem(before);
    if (localStorage.getItem(after) === null) localStorage.setItem(after, value);
  }
}
try {
  renameOldKeys();
} catch {
  // No access to the storage.
}

function readStorage(name) {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_PREFIX + name));
  } catch {
    return null;
  }
}

window.promptOrTune.writeStorage = (name, value) => {
  try {
    localStorage.setItem(STORAGE_PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
};

const sizeOf = (value) => new TextEncoder().encode(JSON.stringify(value)).length;

// Without the oldest runs, and at last without the fields, if it would be too large for the server.
window.promptOrTune.readStoredState = () => {
  const state = Object.fromEntries(STORED_KEYS.map((name) => [name, readStorage(name)]));
  while (Array.isArray(state.runs) && state.runs.length && sizeOf(state) > MAX_BYTES) state.runs.pop();
  for (const name of STORED_KEYS) if (sizeOf(state) > MAX_BYTES) state[name] = null;
  return state;
};

// Changes of fields before they are filled from the storage are those of a new page: they are not saved.
window.promptOrTune.startSavingFields = (names, values) => {
  saving = true;
  window.promptOrTune.saveFields(names, values);
};

window.promptOrTune.saveFields = (names, values) => {
  if (!saving) return;
  const fields = Object.fromEntries(names.map((name, index) => [name, values[index]]));
  window.promptOrTune.writeStorage("fields", fields);
};

window.promptOrTune.saveRun = (records) => {
  const earlier = readStorage("runs");
  const runs = [records, ...(Array.isArray(earlier) ? earlier : [])].slice(0, MAX_RUNS);
  // Removes the oldest runs until the others fit.
  while (runs.length && (sizeOf(runs) > MAX_BYTES || !window.promptOrTune.writeStorage("runs", runs))) {
    runs.pop();
  }
  window.promptOrTune.writeStorage("shown", records[0].created);
};

window.promptOrTune.clearStorage = () => {
  const question = "Forget your question, your settings and your runs? They are kept in this browser alone.";
  if (!confirm(question)) return;
  STORED_KEYS.forEach((name) => localStorage.removeItem(STORAGE_PREFIX + name));
  location.href = location.pathname;
};

// The introduction is visible on a first visit, hidden after the first run, and back on request.
window.promptOrTune.setWelcomeVisible = (visible) => {
  document.documentElement.classList.toggle("returning-visitor", !visible);
  window.promptOrTune.writeStorage("seen", !visible);
  if (visible) document.querySelector("#run-example")?.focus();
};
document.documentElement.classList.toggle("returning-visitor", readStorage("seen") === true);

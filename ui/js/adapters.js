// The adapters. The value is what ui/adapters/view.py makes; texts become text nodes, never HTML. What was unfolded
// stays unfolded when the list is painted anew.
const list = element.querySelector(".adapter-cards");
const found = element.querySelector(".found");
const pager = element.querySelector(".pager");
const models = element.querySelector(".models");
const unfolded = new Map();
const USABLE = { yes: "Usable here", no: "Not usable here" };
const UNKNOWN = { failed: "Usable? Not known: the model could not be loaded" };
const HEADS = ["metric", "score", "95 % interval", "n"];
let asking = "";
let fresh = "";

function node(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function button(text, name, act) {
  const made = node("button", name, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function ask(what, card) {
  asking = card ? what + " " + card.name : "";
  for (const each of element.querySelectorAll(".acts button, .pager button")) each.disabled = true;
  trigger("select", { do: what, name: card ? card.name : "", from: props.value.from });
}

function pairs(name, rows) {
  const made = node("dl", name);
  for (const [term, value] of rows) made.append(node("dt", "", term), node("dd", "", value));
  return made;
}

function table(caption, heads, rows) {
  const made = node("table", "scored");
  if (caption) made.append(node("caption", "", caption));
  const head = node("tr");
  head.append(...heads.map((text) => { const cell = node("th", "", text); cell.scope = "col"; return cell; }));
  const top = node("thead");
  top.append(head);
  const body = node("tbody");
  for (const row of rows) {
    const line = node("tr");
    line.append(...row.map((text, place) => {
      const cell = node(place ? "td" : "th", "", text || "–");
      if (!place) cell.scope = "row";
      return cell;
    }));
    body.append(line);
  }
  made.append(top, body);
  return made;
}

function state(card, value) {
  const made = node("p", "state");
  const said = USABLE[card.usable] || UNKNOWN[value.phase] || "Usable? Known when the model is ready";
  const usable = node("span", "usable " + card.usable, said);
  const memory = node("span", card.memory ? "memory in" : "memory", card.memory || "Not in memory");
  made.append(usable, memory);
  return made;
}

function acts(card, value) {
  const row = node("div", "acts");
  const open = button("Open in Compare", "main", () => ask("open", card));
  open.disabled = card.usable !== "yes";
  row.append(open);
  if (value.may && value.phase === "ready" && card.usable === "yes") {
    const load = card.memory
      ? button("Unload", "", () => ask("unload", card))
      : button("Load", "", () => ask("load", card));
    load.title = card.memory ? "Take it out of memory" : "Bring it into memory, so that its first answer comes sooner";
    row.append(load);
  }
  row.append(button("Download zip", "", () => ask("save", card)));
  if (value.may && card.own) row.append(button("Delete", "bad", () => question(card, row, value)));
  for (const each of row.children) each.setAttribute("aria-label", each.textContent + ": " + card.name);
  return row;
}

// Asked in the place of the buttons; the harmless answer has the focus.
function question(card, row, value) {
  const made = node("div", "acts asked");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", "Delete " + card.name + " for good?");
  const keep = button("Keep it", "", () => {
    const again = acts(card, value);
    made.replaceWith(again);
    again.querySelector(".bad").focus();
  });
  made.addEventListener("keydown", (event) => { if (event.key === "Escape") keep.click(); });
  made.append(node("span", "", "Delete it for good?"), button("Delete " + card.name, "bad", () => ask("delete", card)), keep);
  row.replaceWith(made);
  keep.focus();
}

function fill(place, told) {
  if (told.fault) { place.replaceChildren(node("p", "sentence", told.fault)); return; }
  const parts = [];
  if (told.facts.length) parts.push(pairs("identity", told.facts));
  // One table for each place that scores were measured at: numbers of two places are not to be compared.
  for (const where of new Set(told.scores.map((row) => row[0]))) {
    const rows = told.scores.filter((row) => row[0] === where).map((row) => row.slice(1));
    parts.push(table(where || "Measured on: not said", HEADS, rows));
  }
  for (const [title, text] of [["Its card", told.readme], ["Its manifest", told.manifest]]) {
    const block = node("pre", "text", text || "There is none.");
    block.tabIndex = 0;
    block.setAttribute("role", "group");
    block.setAttribute("aria-label", title);
    parts.push(node("h3", "", title), block);
  }
  place.replaceChildren(...parts);
}

async function tell(card, place) {
  if (!unfolded.get(card.name)) {
    place.replaceChildren(node("p", "quiet", "Reading ..."));
    try {
      unfolded.set(card.name, await server.adapter_details(card.name));
    } catch {
      place.replaceChildren(node("p", "sentence", "The connection broke: fold this and open it again."));
      return;
    }
  }
  if (place.isConnected) fill(place, unfolded.get(card.name));
}

function fold(card) {
  const made = node("details");
  const place = node("div", "told");
  made.append(node("summary", "", "Scores, card and manifest"), place);
  if (unfolded.has(card.name)) {
    made.open = true;
    fill(place, unfolded.get(card.name));
  }
  made.addEventListener("toggle", () => {
    if (!made.open) unfolded.delete(card.name);
    else if (!unfolded.has(card.name)) tell(card, place);
  });
  return made;
}

function draw(card, value) {
  const item = node("li", "adapter");
  item.dataset.name = card.name;
  const head = node("div", "adapter-head");
  head.append(node("h2", "", card.name));
  if (card.kind) head.append(node("span", "kind", card.kind));
  if (card.name === fresh) { item.classList.add("fresh"); head.append(node("span", "kind new", "just added")); }
  item.append(head, state(card, value));
  if (card.reason) item.append(node("p", "reason", card.reason));
  if (card.facts.length) item.append(pairs("facts", card.facts));
  if (card.scores.length) item.append(table(card.scored_on, HEADS, card.scores));
  item.append(node("p", "place", card.place), acts(card, value), fold(card));
  return item;
}

function turn(text, from, value) {
  const made = button(text, "", () => {
    trigger("select", { do: "page", name: "", from });
    element.scrollIntoView({ block: "start" });
  });
  made.disabled = from < 0 || from >= value.total;
  return made;
}

function model(each) {
  const item = node("li");
  const code = node("code", "", each.command);
  item.append(node("span", "", each.name), code, button("Copy", "", () => navigator.clipboard?.writeText(each.command)));
  item.lastChild.setAttribute("aria-label", "Copy the command for " + each.name);
  return item;
}

// Where the focus was comes back: the button that was pressed may be another one now, or gone.
function refocus() {
  if (!asking) return;
  const name = asking.slice(asking.indexOf(" ") + 1);
  asking = "";
  const card = [...list.children].find((item) => item.dataset.name === name);
  if (!card) { list.tabIndex = -1; list.focus({ preventScroll: true }); return; }
  card.querySelector(".acts button:not(:disabled)")?.focus({ preventScroll: true });
}

function show() {
  const value = props.value;
  if (!value) return;
  const arrived = value.fresh && value.fresh !== fresh;
  fresh = value.fresh || fresh;
  found.textContent = value.none ? "There is no adapter yet: train one, or add one from the Hub or a zip." : value.head;
  list.replaceChildren(...value.cards.map((card) => draw(card, value)));
  const fits = value.total <= value.size;
  pager.replaceChildren(...(fits ? [] : [
    turn("Previous", value.from - value.size, value),
    node("span", "quiet", `${value.from + 1} to ${value.from + value.cards.length} of ${value.total}`),
    turn("Next", value.from + value.size, value),
  ]));
  models.hidden = !value.models.length;
  models.querySelector("ul").replaceChildren(...value.models.map(model));
  refocus();
  if (arrived) list.querySelector(".fresh")?.scrollIntoView({ block: "nearest" });
}
window.promptOrTuneSaveZip = (file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "adapter.zip";
  document.body.append(link);
  link.click();
  link.remove();
};
watch("value", show);
show();

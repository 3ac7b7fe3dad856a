// The list of adapters. The value is made by ui/adapters/view.py; texts become text nodes, never HTML. Details that are
// open stay open when the list is rendered again.
const list = element.querySelector(".adapter-cards");
const countText = element.querySelector(".result-count");
const pager = element.querySelector(".pager");
const models = element.querySelector(".models");
const openDetails = new Map();
const USABLE = { yes: "Usable here", no: "Not usable here" };
const UNKNOWN = { failed: "Usable? Not known: the model could not be loaded" };
const HEADS = ["metric", "score", "95 % interval", "n"];
let pendingAction = "";
let addedName = "";

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

function sendAction(what, card) {
  pendingAction = card ? what + " " + card.name : "";
  for (const button of element.querySelectorAll(".actions button, .pager button")) button.disabled = true;
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
    line.append(...row.map((text, index) => {
      const cell = node(index ? "td" : "th", "", text || "–");
      if (!index) cell.scope = "row";
      return cell;
    }));
    body.append(line);
  }
  made.append(top, body);
  return made;
}

function state(card, value) {
  const made = node("p", "state");
  const usableText = USABLE[card.usable] || UNKNOWN[value.phase] || "Usable? Known when the model is ready";
  const usable = node("span", "usable " + card.usable, usableText);
  const memory = node("span", card.memory ? "memory in" : "memory", card.memory || "Not in memory");
  made.append(usable, memory);
  return made;
}

function actionButtons(card, value) {
  const row = node("div", "actions");
  const open = button("Open in Compare", "main", () => sendAction("open", card));
  open.disabled = card.usable !== "yes";
  row.append(open);
  if ((card.memory ? card.may.unload : card.may.load) && value.phase === "ready" && card.usable === "yes") {
    const load = card.memory
      ? button("Unload", "", () => sendAction("unload", card))
      : button("Load", "", () => sendAction("load", card));
    load.title = card.memory ? "Take it out of memory" : "Bring it into memory, so that its first answer comes sooner";
    row.append(load);
  }
  if (card.may.download) row.append(button("Download zip", "", () => sendAction("save", card)));
  if (card.may.delete && card.own) row.append(button("Delete", "bad", () => confirmDelete(card, row, value)));
  for (const child of row.children) child.setAttribute("aria-label", child.textContent + ": " + card.name);
  return row;
}

// Replaces the buttons of the card by a question; "Keep it" has the focus.
function confirmDelete(card, row, value) {
  const made = node("div", "actions confirm");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", "Delete " + card.name + " for good?");
  const keepButton = button("Keep it", "", () => {
    const again = actionButtons(card, value);
    made.replaceWith(again);
    again.querySelector(".bad").focus();
  });
  made.addEventListener("keydown", (event) => { if (event.key === "Escape") keepButton.click(); });
  made.append(node("span", "", "Delete it for good?"), button("Delete " + card.name, "bad", () => sendAction("delete", card)), keepButton);
  row.replaceWith(made);
  keepButton.focus();
}

function renderDetails(container, details) {
  if (details.error) { container.replaceChildren(node("p", "error-message", details.error)); return; }
  const parts = [];
  if (details.facts.length) parts.push(pairs("identity", details.facts));
  // One table per data set that the scores were measured on: numbers of two data sets cannot be compared.
  for (const where of new Set(details.scores.map((row) => row[0]))) {
    const rows = details.scores.filter((row) => row[0] === where).map((row) => row.slice(1));
    parts.push(table(where || "Measured on: not said", HEADS, rows));
  }
  for (const [title, text] of [["Its card", details.readme], ["Its manifest", details.manifest]]) {
    const block = node("pre", "text", text || "There is none.");
    block.tabIndex = 0;
    block.setAttribute("role", "group");
    block.setAttribute("aria-label", title);
    parts.push(node("h3", "", title), block);
  }
  container.replaceChildren(...parts);
}

async function loadDetails(card, container) {
  if (!openDetails.get(card.name)) {
    container.replaceChildren(node("p", "muted", "Reading ..."));
    try {
      openDetails.set(card.name, await server.adapter_details(card.name));
    } catch {
      container.replaceChildren(node("p", "error-message", "The connection broke: fold this and open it again."));
      return;
    }
  }
  if (container.isConnected) renderDetails(container, openDetails.get(card.name));
}

function detailsElement(card) {
  const made = node("details");
  const container = node("div", "details-body");
  made.append(node("summary", "", "Scores, card and manifest"), container);
  if (openDetails.has(card.name)) {
    made.open = true;
    renderDetails(container, openDetails.get(card.name));
  }
  made.addEventListener("toggle", () => {
    if (!made.open) openDetails.delete(card.name);
    else if (!openDetails.has(card.name)) loadDetails(card, container);
  });
  return made;
}

function draw(card, value) {
  const item = node("li", "adapter");
  item.dataset.name = card.name;
  const head = node("div", "adapter-head");
  head.append(node("h2", "", card.name));
  if (card.kind) head.append(node("span", "kind", card.kind));
  if (card.name === addedName) { item.classList.add("added"); head.append(node("span", "kind new", "just added")); }
  item.append(head, state(card, value));
  if (card.reason) item.append(node("p", "reason", card.reason));
  if (card.facts.length) item.append(pairs("facts", card.facts));
  if (card.scores.length) item.append(table(card.scored_on, HEADS, card.scores));
  item.append(node("p", "location", card.place), actionButtons(card, value), detailsElement(card));
  return item;
}

function pagerButton(text, from, value) {
  const made = button(text, "", () => {
    trigger("select", { do: "page", name: "", from });
    element.scrollIntoView({ block: "start" });
  });
  made.disabled = from < 0 || from >= value.total;
  return made;
}

function modelItem(model) {
  const item = node("li");
  const code = node("code", "", model.command);
  item.append(node("span", "", model.name), code, button("Copy", "", () => navigator.clipboard?.writeText(model.command)));
  item.lastChild.setAttribute("aria-label", "Copy the command for " + model.name);
  return item;
}

// Focuses the card whose button was pressed: that button may have been replaced or removed.
function restoreFocus() {
  if (!pendingAction) return;
  const name = pendingAction.slice(pendingAction.indexOf(" ") + 1);
  pendingAction = "";
  const card = [...list.children].find((item) => item.dataset.name === name);
  if (!card) { list.tabIndex = -1; list.focus({ preventScroll: true }); return; }
  card.querySelector(".actions button:not(:disabled)")?.focus({ preventScroll: true });
}

function show() {
  const value = props.value;
  if (!value) return;
  const added = value.fresh && value.fresh !== addedName;
  addedName = value.fresh || addedName;
  countText.textContent = value.none ? "There is no adapter yet: train one, or add one from the Hub or a zip." : value.head;
  list.replaceChildren(...value.cards.map((card) => draw(card, value)));
  const fits = value.total <= value.size;
  pager.replaceChildren(...(fits ? [] : [
    pagerButton("Previous", value.from - value.size, value),
    node("span", "muted", `${value.from + 1} to ${value.from + value.cards.length} of ${value.total}`),
    pagerButton("Next", value.from + value.size, value),
  ]));
  models.hidden = !value.models.length;
  models.querySelector("ul").replaceChildren(...value.models.map(modelItem));
  restoreFocus();
  if (added) list.querySelector(".added")?.scrollIntoView({ block: "nearest" });
}
watch("value", show);
show();

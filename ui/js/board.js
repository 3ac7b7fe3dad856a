// Paints the board. Gradio calls this once with `element`, `props`, `server` and `watch`.
// The value's HTML was escaped on the server. Only sections that changed are repainted, so that a fold stays open, a
// selection lives and a scroll position holds while the other columns still grow.
const head = element.querySelector(".board-head");
const cards = element.querySelector(".cards");
const SECTIONS = ["head", "code", "numbers", "tests", "folds"];
let painted = new WeakMap();
let run = null;

function paint(node, html) {
  if (painted.get(node) === html) return;
  const scroller = node.querySelector("pre.code");
  const follows = scroller && scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 24;
  node.innerHTML = html;
  painted.set(node, html);
  const next = node.querySelector("pre.code");
  if (next && follows && node.closest(".card")?.dataset.state === "streaming") next.scrollTop = next.scrollHeight;
}

function newCard() {
  const card = document.createElement("article");
  card.className = "card";
  for (const name of SECTIONS) {
    const section = document.createElement("div");
    section.className = "card-" + name;
    card.append(section);
  }
  return card;
}

function show() {
  const value = props.value || { run: "", head: "", cards: [] };
  if (value.run !== run) {
    if (run !== null && value.run) reveal();
    run = value.run;
    cards.dataset.run = run;
    cards.replaceChildren();
    cards.scrollLeft = 0;
  }
  paint(head, value.head);
  while (cards.children.length > value.cards.length) cards.lastElementChild.remove();
  value.cards.forEach((data, place) => {
    const card = cards.children[place] || cards.appendChild(newCard());
    card.dataset.state = data.state;
    card.classList.toggle("best", data.best);
    card.setAttribute("aria-label", data.label);
    SECTIONS.forEach((name, i) => paint(card.children[i], data[name]));
    card.querySelectorAll("pre.code").forEach((pre) => pre.setAttribute("aria-label", "Code of " + data.label));
  });
  cards.hidden = value.cards.length === 0;
}

function reveal() {
  // On a small screen the answers begin below its edge: whoever asked is brought to them.
  const line = element.closest("#compare")?.querySelector("#result-line") || head;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (line && line.getBoundingClientRect().top > innerHeight * 0.5) {
    line.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }
}

function placeOf(node) {
  return Array.from(cards.children).indexOf(node.closest(".card"));
}

async function copy(button) {
  const text = props.value.cards[placeOf(button)].raw;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https the clipboard is closed to scripts, but not to the copy command.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function fillChoice(fold, place) {
  const select = fold.querySelector("select");
  if (select.options.length) return select;
  if (props.value.reference) select.add(new Option("the reference", "reference"));
  props.value.cards.forEach((data, other) => {
    if (other !== place && data.raw) select.add(new Option(data.label, String(other)));
  });
  return select;
}

async function compare(fold) {
  const place = placeOf(fold);
  const choice = fillChoice(fold, place).value;
  const body = fold.querySelector("[data-diff-body]");
  if (!choice) {
    body.textContent = "There is no reference and no other answer to compare with.";
    return;
  }
  const value = props.value;
  const theirs = choice === "reference" ? value.reference : value.cards[Number(choice)].raw;
  body.innerHTML = await server.difference({ mine: value.cards[place].raw, theirs });
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
element.addEventListener("change", (event) => {
  const fold = event.target.closest("[data-diff]");
  if (fold) compare(fold);
});
// `toggle` does not bubble, but it can be caught on its way down.
element.addEventListener("toggle", (event) => {
  if (event.target.matches("[data-diff]") && event.target.open) compare(event.target);
}, true);
watch("value", show);
show();

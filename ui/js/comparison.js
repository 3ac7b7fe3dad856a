// The columns of a comparison. Gradio runs this once with `element`, `props`, `server` and `watch`.
// The HTML in the value was escaped by the server. Only the sections that changed are rendered again, so that open
// details, a text selection and the scroll position stay while other columns are still streaming.
const head = element.querySelector(".comparison-header");
const cards = element.querySelector(".cards");
const SECTIONS = ["head", "code", "numbers", "tests", "details"];
let rendered = new WeakMap();
let run = null;

function render(node, html) {
  if (rendered.get(node) === html) return;
  const scroller = node.querySelector("pre.code");
  const follows = scroller && scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 24;
  node.innerHTML = html;
  rendered.set(node, html);
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
    if (run !== null && value.run) scrollToResults();
    run = value.run;
    cards.dataset.run = run;
    cards.replaceChildren();
    cards.scrollLeft = 0;
  }
  render(head, value.head);
  while (cards.children.length > value.cards.length) cards.lastElementChild.remove();
  value.cards.forEach((data, index) => {
    const card = cards.children[index] || cards.appendChild(newCard());
    card.dataset.state = data.state;
    card.classList.toggle("best", data.best);
    card.setAttribute("aria-label", data.label);
    SECTIONS.forEach((name, i) => render(card.children[i], data[name]));
    card.querySelectorAll("pre.code").forEach((pre) => pre.setAttribute("aria-label", "Code of " + data.label));
  });
  cards.hidden = value.cards.length === 0;
}

// On a small screen the results begin below the visible part of the page.
function scrollToResults() {
  const title = element.closest("#compare")?.querySelector("#result-line") || head;
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (title && title.getBoundingClientRect().top > innerHeight * 0.5) {
    title.scrollIntoView({ behavior: reducedMotion ? "auto" : "smooth", block: "start" });
  }
}

function indexOfCard(node) {
  return Array.from(cards.children).indexOf(node.closest(".card"));
}

async function copy(button) {
  const text = props.value.cards[indexOfCard(button)].raw;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https the clipboard API is denied, but the copy command works.
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

function fillCompareOptions(details, index) {
  const select = details.querySelector("select");
  if (select.options.length) return select;
  if (props.value.reference) select.add(new Option("the reference", "reference"));
  props.value.cards.forEach((data, other) => {
    if (other !== index && data.raw) select.add(new Option(data.label, String(other)));
  });
  return select;
}

async function compare(details) {
  const index = indexOfCard(details);
  const choice = fillCompareOptions(details, index).value;
  const body = details.querySelector("[data-diff-body]");
  if (!choice) {
    body.textContent = "There is no reference and no other answer to compare with.";
    return;
  }
  const value = props.value;
  const theirs = choice === "reference" ? value.reference : value.cards[Number(choice)].raw;
  try {
    body.innerHTML = await server.difference({ mine: value.cards[index].raw, theirs });
  } catch {
    body.textContent = "The difference could not be computed: choose it again in a moment.";
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
element.addEventListener("change", (event) => {
  const details = event.target.closest("[data-diff]");
  if (details) compare(details);
});
// `toggle` does not bubble, but the capture phase sees it.
element.addEventListener("toggle", (event) => {
  if (event.target.matches("[data-diff]") && event.target.open) compare(event.target);
}, true);
watch("value", show);
show();

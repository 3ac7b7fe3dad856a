// All jobs, newest first. The value is {jobs: [{id, adapter, state, word, about, when, mine, shown}]}; texts become
// text nodes, never HTML. Items are kept from one painting to the next, so that the focus stays where it is.
const list = element.querySelector("ol");
const items = new Map();
let shown = null;

function told(iso) {
  const when = new Date(iso);
  if (isNaN(when)) return "";
  const clock = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const today = when.toDateString() === new Date().toDateString();
  return today ? clock : when.toLocaleDateString([], { day: "numeric", month: "short" }) + ", " + clock;
}

function make(id) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  for (const name of ["job-adapter", "job-state", "job-on", "job-when"]) {
    const span = document.createElement("span");
    span.className = name;
    button.append(span);
  }
  button.addEventListener("click", () => { if (!button.hasAttribute("aria-current")) trigger("select", { id }); });
  item.append(button);
  return item;
}

function fill(item, job) {
  const button = item.firstElementChild;
  const [adapter, state, about, when] = button.children;
  adapter.textContent = job.adapter;
  state.textContent = job.word;
  state.className = "job-state " + job.state;
  about.textContent = job.about;
  when.textContent = told(job.when) + (job.mine ? "" : " · another visitor's");
  if (job.shown) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

// Scrolls the list alone, never the page.
function bring(item) {
  const top = item.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
}

function show() {
  const jobs = props.value?.jobs || [];
  const ids = new Set(jobs.map((job) => job.id));
  for (const [id, item] of items) if (!ids.has(id)) { item.remove(); items.delete(id); }
  jobs.forEach((job, place) => {
    if (!items.has(job.id)) items.set(job.id, make(job.id));
    const item = items.get(job.id);
    fill(item, job);
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
  });
  const now = jobs.find((job) => job.shown)?.id;
  if (now !== shown && now) bring(items.get(now));
  shown = now;
}
watch("value", show);
show();

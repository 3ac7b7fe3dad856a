// The training jobs, newest first. The value is {jobs: [{id, adapter, state, word, about, when, mine, shown}]}; texts
// become text nodes, never HTML. The items are reused when the list is rendered again, so that the focus stays.
const list = element.querySelector("ol");
const items = new Map();
let selectedJob = null;

function formatTime(iso) {
  const when = new Date(iso);
  if (isNaN(when)) return "";
  const clock = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const today = when.toDateString() === new Date().toDateString();
  return today ? clock : when.toLocaleDateString([], { day: "numeric", month: "short" }) + ", " + clock;
}

function createItem(id) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  for (const name of ["job-adapter", "job-state", "job-dataset", "job-when"]) {
    const span = document.createElement("span");
    span.className = name;
    button.append(span);
  }
  button.addEventListener("click", () => { if (!button.hasAttribute("aria-current")) trigger("select", { id }); });
  item.append(button);
  return item;
}

function updateItem(item, job) {
  const button = item.firstElementChild;
  const [adapter, state, about, when] = button.children;
  adapter.textContent = job.adapter;
  state.textContent = job.word;
  state.className = "job-state " + job.state;
  about.textContent = job.about;
  when.textContent = formatTime(job.when) + (job.mine ? "" : " · another visitor's");
  if (job.shown) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

// Scrolls the list, not the page.
function scrollIntoList(item) {
  const top = item.offsetTop - list.offsetTop;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top + item.offsetHeight - list.clientHeight;
}

function show() {
  const jobs = props.value?.jobs || [];
  const ids = new Set(jobs.map((job) => job.id));
  for (const [id, item] of items) if (!ids.has(id)) { item.remove(); items.delete(id); }
  jobs.forEach((job, index) => {
    if (!items.has(job.id)) items.set(job.id, createItem(job.id));
    const item = items.get(job.id);
    updateItem(item, job);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] || null);
  });
  const now = jobs.find((job) => job.shown)?.id;
  if (now !== selectedJob && now) scrollIntoList(items.get(now));
  selectedJob = now;
}
watch("value", show);
show();

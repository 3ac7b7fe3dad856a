// Asks how the jobs are: as often as the last answer said, only while somebody sees them, and never twice at a time.
// The value is {job, seen, every, number}: what the page shows now. The number of a look comes back with its answer, so
// that an answer is noticed in which nothing changed. The address names the job, so that a refresh finds it.
const UNANSWERED = 15000; // an app that was restarted answers again
let asked = 0;
let number = 0;
let answered = true;
let shown = null;
const named = new URL(location.href).searchParams.get("job") || "";

const panel = () => document.querySelector("#train-jobs");
const seen = () => !document.hidden && Boolean(panel()?.getClientRects().length);

function look() {
  asked = Date.now();
  answered = false;
  number += 1;
  const value = props.value || { job: named, seen: {} };
  const log = Boolean(document.querySelector("#train-job-log details")?.open);
  trigger("tick", { job: value.job, seen: value.seen, log, number });
}

function due() {
  if (!element.isConnected) clearInterval(clock);
  else if (!seen()) leave();
  else if (Date.now() - asked >= (answered ? 1000 * (props.value?.every || 1.5) : UNANSWERED)) look();
}

// The job stands in the address of this page alone.
function leave() {
  const address = new URL(location.href);
  if (document.hidden || !address.searchParams.has("job") || address.searchParams.get("tab") === "train") return;
  address.searchParams.delete("job");
  history.replaceState(history.state, "", address);
}

function enter(job) {
  const address = new URL(location.href);
  if (address.searchParams.get("tab") !== "train" || (address.searchParams.get("job") || "") === job) return;
  if (job) address.searchParams.set("job", job);
  else address.searchParams.delete("job");
  history.replaceState(history.state, "", address);
}

function reveal() {
  const place = document.querySelector("#train-job");
  const top = place?.getBoundingClientRect().top;
  if (top === undefined || (top >= 0 && top < innerHeight * 0.6)) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  place.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

watch("value", () => {
  answered = true;
  const job = props.value?.job || "";
  enter(job);
  // Whoever chose, started or addressed a job is brought to it; whoever just opened the page stays at its top.
  if (job && job !== (shown ?? (named === job ? "" : job))) setTimeout(reveal, 100);
  shown = job;
});

window.promptOrTuneLook = () => { if (seen()) look(); };
window.promptOrTuneSave = (file) => {
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || "adapter.zip";
  document.body.append(link);
  link.click();
  link.remove();
};
document.addEventListener("visibilitychange", window.promptOrTuneLook);
const clock = setInterval(due, 250);
due();

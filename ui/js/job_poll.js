// Polls the jobs of a page: at the interval of the last response, only while the panel is visible, and with one request
// at a time. The value is {job, seen, every, number}: what the page displays. The number of a request comes back with
// its response, so that a response without changes is noticed too. The URL names the job, so that a refresh finds it.
// `page` is the tab, and `parameter` the one of the URL that names the job.
const { page, parameter } = props;
const RESPONSE_TIMEOUT_MS = 15000; // an app that was restarted answers again
let lastPollAt = 0;
let number = 0;
let responseReceived = true;
let selectedJob = null;
const urlJob = new URL(location.href).searchParams.get(parameter) || "";

const panel = () => document.querySelector(`#${page}-jobs`);
const isVisible = () => !document.hidden && Boolean(panel()?.getClientRects().length);

function poll() {
  lastPollAt = Date.now();
  responseReceived = false;
  number += 1;
  const value = props.value || { job: urlJob, seen: {} };
  const log = Boolean(document.querySelector(`#${page}-job-log details`)?.open);
  trigger("tick", { job: value.job, seen: value.seen, log, number });
}

function pollIfDue() {
  const interval = responseReceived ? 1000 * (props.value?.every || 1.5) : RESPONSE_TIMEOUT_MS;
  if (!element.isConnected) clearInterval(clock);
  else if (!isVisible()) clearUrlJob();
  else if (Date.now() - lastPollAt >= interval) poll();
}

// The job is in the URL only while its page is open.
function clearUrlJob() {
  const url = new URL(location.href);
  if (document.hidden || !url.searchParams.has(parameter) || url.searchParams.get("tab") === page) return;
  url.searchParams.delete(parameter);
  history.replaceState(history.state, "", url);
}

function setUrlJob(job) {
  const url = new URL(location.href);
  if (url.searchParams.get("tab") !== page || (url.searchParams.get(parameter) || "") === job) return;
  if (job) url.searchParams.set(parameter, job);
  else url.searchParams.delete(parameter);
  history.replaceState(history.state, "", url);
}

function scrollToJob() {
  const details = document.querySelector(`#${page}-job`);
  const top = details?.getBoundingClientRect().top;
  if (top === undefined || (top >= 0 && top < innerHeight * 0.6)) return;
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
  details.scrollIntoView({ behavior: reducedMotion ? "auto" : "smooth", block: "start" });
}

watch("value", () => {
  responseReceived = true;
  const job = props.value?.job || "";
  setUrlJob(job);
  // Scrolls to a job that was selected, started or named by the URL, not to the one that a new page selects itself.
  if (job && job !== (selectedJob ?? (urlJob === job ? "" : job))) setTimeout(scrollToJob, 100);
  selectedJob = job;
});

const pollIfVisible = () => { if (isVisible()) poll(); };
const polls = (window.promptOrTune.jobPolls ??= {});
polls[page] = pollIfVisible;
window.promptOrTune.pollJobs = () => Object.values(polls).forEach((pollPage) => pollPage());
document.addEventListener("visibilitychange", pollIfVisible);
const clock = setInterval(pollIfDue, 250);
pollIfDue();

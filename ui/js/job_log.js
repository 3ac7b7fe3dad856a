// The log of a job. The value is {job, lines}; lines are null until the log is opened. The log scrolls with its end
// unless the reader has scrolled up.
const details = element.querySelector("details");
const text = element.querySelector("pre");
const button = element.querySelector(".copy");
let job = null;

function show() {
  const value = props.value || { job: "", lines: null };
  if (value.job !== job) {
    job = value.job;
    text.textContent = "";
  }
  if (value.lines === null) return;
  const follows = text.scrollTop + text.clientHeight >= text.scrollHeight - 24;
  text.textContent = value.lines.length ? value.lines.join("\n") : "Nothing has been written yet.";
  if (follows) text.scrollTop = text.scrollHeight;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch {
    // Without https the clipboard API is denied, but the copy command works.
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

details.addEventListener("toggle", () => { if (details.open) window.promptOrTune.pollJobs?.(); });
button.addEventListener("click", copy);
watch("value", show);
show();

// The log of a job. The value is {job, lines}; lines are null as long as it is folded, and asked for when it opens.
// It follows its end unless somebody scrolled up to read.
const fold = element.querySelector("details");
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
    // Without https the clipboard is closed to scripts, but not to the copy command.
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

fold.addEventListener("toggle", () => { if (fold.open) window.promptOrTuneLook?.(); });
button.addEventListener("click", copy);
watch("value", show);
show();

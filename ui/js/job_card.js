// Renders HTML that the server escaped, with its times in the time zone and the language of the browser.
const container = element.querySelector("div");
let rendered = null;

function localTime(node) {
  const when = new Date(node.dateTime);
  if (isNaN(when)) return;
  const today = when.toDateString() === new Date().toDateString();
  const clock = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  node.textContent = today ? "today at " + clock : when.toLocaleDateString() + ", " + clock;
}

function show() {
  const html = props.value || "";
  if (html === rendered) return;
  const open = Array.from(container.querySelectorAll("details"), (details) => details.open);
  container.innerHTML = html;
  rendered = html;
  container.querySelectorAll("time").forEach(localTime);
  container.querySelectorAll("details").forEach((details, index) => {
    if (index in open) details.open = open[index];
  });
}
watch("value", show);
show();

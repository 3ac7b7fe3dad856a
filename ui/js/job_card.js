// Puts HTML that the server escaped into the page, with its times in the visitor's own zone and language.
const place = element.querySelector("div");
let painted = null;

function localTime(node) {
  const when = new Date(node.dateTime);
  if (isNaN(when)) return;
  const today = when.toDateString() === new Date().toDateString();
  const clock = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  node.textContent = today ? "today at " + clock : when.toLocaleDateString() + ", " + clock;
}

function show() {
  const html = props.value || "";
  if (html === painted) return;
  const open = Array.from(place.querySelectorAll("details"), (fold) => fold.open);
  place.innerHTML = html;
  painted = html;
  place.querySelectorAll("time").forEach(localTime);
  place.querySelectorAll("details").forEach((fold, at) => { fold.open = Boolean(open[at]); });
}
watch("value", show);
show();

// The losses by step. The value is {job, training: [[step, loss]], validation, steps, mean, said}. The chart is drawn at
// its width on the page, so that its text keeps its size; the pointer and the arrow keys select the step to read.
const chart = element.querySelector("div");
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 270, LEFT = 46, RIGHT = 14, TOP = 22, BOTTOM = 40;
let drawn = null; // {points by series, x, y, steps, marks}
let selectedStep = null;

function node(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function tag(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// About `count` round numbers from `low` to `high`, each with its text: 1, 2 or 5 times a power of ten apart.
function ticks(low, high, count) {
  const rough = Math.max(high - low, 1e-9) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough);
  const found = [];
  const decimals = Math.max(0, -Math.floor(Math.log10(step)));
  for (let tick = Math.ceil(low / step); tick * step <= high + step / 1000; tick += 1) {
    found.push([tick * step, (tick * step).toFixed(decimals)]);
  }
  return found;
}

function buildChart() {
  chart.replaceChildren();
  const svg = node("svg", { height: HEIGHT, role: "img" });
  const slider = tag("div", "step-slider");
  for (const [key, value] of Object.entries({ role: "slider", tabindex: "0", "aria-label": "Step to read off" })) {
    slider.setAttribute(key, value);
  }
  const legend = tag("ul", "legend");
  for (const name of ["training", "validation", "best"]) legend.append(tag("li", name, swatch(name), tag("span")));
  chart.append(tag("h4", "", "Loss by step"), legend, tag("div", "chart", svg, slider), tag("p", "readout"), tag("p", "description muted"));
  slider.addEventListener("pointermove", (event) => showStep(nearest(event.clientX)));
  slider.addEventListener("pointerdown", (event) => showStep(nearest(event.clientX)));
  slider.addEventListener("pointerleave", () => { if (document.activeElement !== slider) showStep(null); });
  slider.addEventListener("focus", () => showStep(selectedStep ?? drawn.marks.at(-1)));
  slider.addEventListener("blur", () => showStep(null));
  slider.addEventListener("keydown", move);
}

function swatch(name) {
  const line = node("svg", { width: 26, height: 10, "aria-hidden": "true" });
  if (name === "best") line.append(node("circle", { cx: 13, cy: 5, r: 4, class: "best" }));
  else line.append(node("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: name }));
  return line;
}

function move(event) {
  const marks = drawn.marks;
  const now = Math.max(0, marks.indexOf(selectedStep));
  const far = Math.max(1, Math.round(marks.length / 10));
  const to = {
    ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1,
    PageUp: now + far, PageDown: now - far, Home: 0, End: marks.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  showStep(marks[Math.min(Math.max(to, 0), marks.length - 1)]);
}

function nearest(clientX) {
  const left = chart.querySelector("svg[role=img]").getBoundingClientRect().left;
  return drawn.marks.reduce((best, step) =>
    Math.abs(drawn.x(step) + left - clientX) < Math.abs(drawn.x(best) + left - clientX) ? step : best);
}

// The point of a series at the step, or the last one before it.
function valueAt(points, step) {
  return points.filter((point) => point[0] <= step).at(-1);
}

function showStep(step) {
  selectedStep = step;
  const line = chart.querySelector(".cursor"), slider = chart.querySelector(".step-slider"), text = chart.querySelector(".readout");
  line.setAttribute("visibility", step === null ? "hidden" : "visible");
  text.textContent = step === null ? "" : describeStep(step);
  if (step === null) return;
  line.setAttribute("x1", drawn.x(step));
  line.setAttribute("x2", drawn.x(step));
  slider.setAttribute("aria-valuenow", step);
  slider.setAttribute("aria-valuetext", describeStep(step));
}

function formatLoss(loss) {
  return loss >= 0.1 ? loss.toFixed(3) : loss.toPrecision(3);
}

function describeStep(step) {
  const training = valueAt(drawn.training, step), validation = valueAt(drawn.validation, step);
  const parts = [`Step ${step}`];
  if (training) parts.push(`training loss ${formatLoss(training[1])}`);
  if (validation) parts.push(`validation loss ${formatLoss(validation[1])}` + (validation[0] === step ? "" : ` (at step ${validation[0]})`));
  return parts.join(" · ");
}

function path(points, x, y) {
  return points.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
}

function draw(value) {
  const width = chart.clientWidth;
  if (!width) return;
  const { training, validation } = value;
  const losses = [...training, ...validation].map((point) => point[1]);
  const low = Math.min(...losses), high = Math.max(...losses), room = Math.max((high - low) * 0.08, high * 0.02, 0.01);
  const bottom = Math.max(0, low - room), top = high + room;
  const x = (step) => LEFT + (width - LEFT - RIGHT) * step / Math.max(value.steps, 1);
  const y = (loss) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (loss - bottom) / (top - bottom));
  const axes = node("g", { class: "axes" });
  for (const [tick, text] of ticks(bottom, top, 5)) {
    axes.append(node("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    axes.append(node("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, text));
  }
  for (const [tick, text] of ticks(0, value.steps, width < 480 ? 4 : 8)) {
    if (!Number.isInteger(tick)) continue;
    axes.append(node("text", { x: x(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, text));
  }
  axes.append(node("text", { x: LEFT - 8, y: 11, "text-anchor": "end" }, "loss"));
  axes.append(node("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"));
  const best = validation.reduce((least, point) => (!least || point[1] < least[1] ? point : least), null);
  const dots = validation.map(([step, loss]) => node("circle", { cx: x(step), cy: y(loss), r: 2.5, class: "point" }));
  if (best) dots.push(node("circle", { cx: x(best[0]), cy: y(best[1]), r: 5.5, class: "best" }));
  const svg = chart.querySelector("svg[role=img]");
  svg.setAttribute("width", width);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("aria-label", "Loss by step. " + value.said);
  svg.replaceChildren(axes,
    node("polyline", { points: path(training, x, y), class: "training" }),
    node("polyline", { points: path(validation, x, y), class: "validation" }), ...dots,
    node("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" }));
  const marks = [...new Set([...training, ...validation].map((point) => point[0]))].sort((one, other) => one - other);
  drawn = { training, validation, x, marks };
  label(value, best);
}

function label(value, best) {
  const [training, validation, lowest] = chart.querySelectorAll(".legend li");
  const mean = value.mean > 1 ? ` (mean of ${value.mean} steps)` : "";
  training.lastChild.textContent = "Training loss" + mean;
  validation.lastChild.textContent = "Validation loss";
  lowest.lastChild.textContent = "Lowest validation loss";
  validation.hidden = lowest.hidden = !best;
  chart.querySelector(".description").textContent = value.said;
  const slider = chart.querySelector(".step-slider");
  slider.setAttribute("aria-valuemin", drawn.marks[0]);
  slider.setAttribute("aria-valuemax", drawn.marks.at(-1));
  if (!slider.hasAttribute("aria-valuenow")) slider.setAttribute("aria-valuenow", drawn.marks.at(-1));
  if (selectedStep !== null) showStep(drawn.marks.includes(selectedStep) ? selectedStep : drawn.marks.at(-1));
}

function show() {
  const value = props.value;
  const some = Boolean(value && value.training.length + value.validation.length);
  chart.hidden = !some;
  if (!some) return;
  if (chart.dataset.job !== value.job) {
    selectedStep = null;
    chart.dataset.job = value.job;
    buildChart();
  }
  draw(value);
}

// Draws the chart again when its width changes: with the window, and when a hidden tab opens.
let width = 0;
new ResizeObserver(() => {
  if (chart.clientWidth === width) return;
  width = chart.clientWidth;
  show();
}).observe(chart);
watch("value", show);
show();

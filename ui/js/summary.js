// A click on a method's name in the table shows the problems where it fails, and goes there.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-method]");
  if (!button) return;
  trigger("select", { method: button.dataset.method });
  document.querySelector("#filters")?.scrollIntoView({ block: "start" });
});

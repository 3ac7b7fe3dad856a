// A click on the name of a method in the table lists the problems where it fails, and scrolls to them.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-method]");
  if (!button) return;
  trigger("select", { method: button.dataset.method });
  document.querySelector(element.closest("#data") ? "#data-problems" : "#filters")?.scrollIntoView({ block: "start" });
});

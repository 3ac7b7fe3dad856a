// Buttons with data-do in the HTML of the component: a click triggers "select" with their data, and deleting asks first.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button) return;
  const data = { ...button.dataset };
  const question = `Delete the data set '${data.name}' with all its rows? Its runs and adapters stay.`;
  if (data.do === "delete" && !confirm(question)) return;
  trigger("select", data);
  if (data.do === "ask") document.querySelector("#data-run-title")?.scrollIntoView({ block: "start" });
});

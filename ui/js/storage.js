// Writes the value of the server into the storage of the browser (see js/page.js). `at` makes two equal values differ.
let version = "";
watch("value", () => {
  const value = props.value;
  if (!value || !value.at || value.at === version) return;
  version = value.at;
  if (value.begun) window.promptOrTune.setWelcomeVisible(false);
  if (value.run) window.promptOrTune.saveRun(value.run);
  else if (value.shown) window.promptOrTune.writeStorage("shown", value.shown);
  if ("chosen" in value) window.promptOrTune.writeStorage("chosen", value.chosen);
});

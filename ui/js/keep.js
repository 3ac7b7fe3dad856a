// Hands what the server made to the browser's own storage (see js/page.js). `at` makes two equal values differ.
let last = "";
watch("value", () => {
  const value = props.value;
  if (!value || !value.at || value.at === last) return;
  last = value.at;
  if (value.begun) window.promptOrTuneWelcome(false);
  if (value.run) window.promptOrTuneKeepRun(value.run);
  else if (value.shown) window.promptOrTuneStore("shown", value.shown);
  if ("chosen" in value) window.promptOrTuneStore("chosen", value.chosen);
});

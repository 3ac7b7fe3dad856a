// Hands what the server made to the browser's own storage (see js/page.js). `at` makes two equal values differ.
let last = "";
watch("value", () => {
  const value = props.value;
  if (!value || !value.at || value.at === last) return;
  last = value.at;
  if (value.begun) window.peftArenaWelcome(false);
  if (value.run) window.peftArenaKeepRun(value.run);
  else if (value.shown) window.peftArenaStore("shown", value.shown);
  if ("chosen" in value) window.peftArenaStore("chosen", value.chosen);
});

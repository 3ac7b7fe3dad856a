// Saves a file that the value holds, so that it needs no copy on the server. `number` makes two equal values differ.
watch("value", () => {
  const file = props.value;
  if (!file) return;
  const content = file.base64 ? Uint8Array.from(atob(file.base64), (letter) => letter.charCodeAt(0)) : file.text;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: file.type }));
  link.download = file.name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

// Shows the row of the sheet that the slider stands at, and says which it is.
(() => {
  const boxes = document.querySelectorAll(".kdcs"); // a notebook's script may not know where it stands
  const box = document.currentScript?.closest(".kdcs") ?? boxes[boxes.length - 1];
  const input = box.querySelector("input");
  const labels = box.dataset.labels.split("|");
  function show() {
    box.style.setProperty("--frame", input.value);
    box.querySelector("output").textContent = labels[input.value];
    input.setAttribute("aria-valuetext", labels[input.value]);
  }
  input.addEventListener("input", show);
  show();
})();

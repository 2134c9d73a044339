// Looks a choice up in the table that the page carries: its figures, its name, and the boxes that it removes. The choice
// stands in the address (#cut=0110k-), so that a link leads to it.
(() => {
  const box = document.currentScript.closest(".kdcx");
  const form = box.querySelector("form");
  const data = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  const whole = data.rows[data.whole];
  const count = (n) => n.toLocaleString("en-US");
  const giga = (n) => (n / 1e9).toFixed(3);

  function chosen() {
    const inner = form.querySelector("input[type=radio]:checked").value;
    form.elements["p" + (data.stages - 1)].disabled = inner !== "k"; // a stage that is gone has no pair to lose
    let key = "";
    for (let stage = 0; stage < data.stages; stage++) {
      const pair = form.elements["p" + stage];
      key += pair.checked && !pair.disabled ? "1" : "0";
    }
    return key + inner + (form.elements["mid"].checked ? "-" : "m");
  }

  function show() {
    const row = data.rows[chosen()];
    const cells = box.querySelectorAll("td");
    for (let i = 0; i < cells.length / 2; i++) {
      cells[2 * i].textContent = data.giga.includes(i) ? giga(row[i]) : count(row[i]);
      cells[2 * i + 1].textContent = ((100 * row[i]) / whole[i]).toFixed(1) + " %";
    }
    const name = row[row.length - 2];
    const marks = row[row.length - 1];
    box.querySelector(".kdcx-name").textContent = name ? "This is " + name + "." : "No paper has named this one.";
    box.querySelectorAll("span[data-i]").forEach((e) => e.classList.toggle("gone", marks[+e.dataset.i] === "0"));
  }

  function choose(key) {
    for (let stage = 0; stage < data.stages; stage++) form.elements["p" + stage].checked = key[stage] === "1";
    for (const one of form.querySelectorAll("input[type=radio]")) one.checked = one.value === key[data.stages];
    form.elements["mid"].checked = key[data.stages + 1] === "-";
  }

  form.addEventListener("change", () => {
    show();
    history.replaceState(null, "", "#cut=" + chosen());
  });
  const asked = location.hash.replace("#cut=", "");
  if (asked in data.rows) choose(asked);
  show();
})();

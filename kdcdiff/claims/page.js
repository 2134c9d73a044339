// Shows the rows of the verdict table that fit every filter, and says how many they are.
(function () {
  const root = document.getElementById('claims');
  const rows = Array.from(root.querySelectorAll('tbody tr'));
  const fields = Array.from(root.querySelectorAll('select, input'));
  const shown = root.querySelector('output');
  function filter() {
    let count = 0;
    for (const row of rows) {
      const fits = fields.every(f => !f.value || (f.tagName === 'INPUT'
        ? row.textContent.toLowerCase().includes(f.value.toLowerCase()) : row.dataset[f.name] === f.value));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = count + ' of ' + rows.length + ' claims';
  }
  for (const f of fields) f.addEventListener('input', filter);
  filter();
})();

// The verdict table: shows the rows that fit every filter, sorted, a part at a time, and says how many they are.
// The filter is in the address (#verdict=refuted&paper=bk-sdm), as is a single row (#kdc.t1.flowers-fid).
// Rows that stand apart, a summary's, are shown where their source is chosen.
(function () {
  const AT_ONCE = 40;
  const ORDERS = { verdict: 'verdict', severity: 'severity', kind: 'kind' };
  const COLUMNS = ['verdict', 'severity', 'paper', 'kind', 'place', 'reason', 'note', 'threshold', 'measured', 'check'];
  const root = document.getElementById('claims');
  const body = root.querySelector('tbody');
  const rows = Array.from(body.querySelectorAll('tr'));
  const fields = Array.from(root.querySelectorAll('.claims-filters select, .claims-filters input'));
  const paper = fields.find(f => f.name === 'paper');
  const shown = root.querySelector('output');
  const more = root.querySelector('[name=more]');
  const ranks = {};  // a word -> its place in the list that one chooses it from
  for (const f of fields) {
    if (f.tagName === 'SELECT') Array.from(f.options).forEach((o, i) => { ranks[f.name + o.value] = i; });
  }
  let all = false;
  let fitting = rows;

  function isOfSource(row) {
    return paper.value ? row.dataset.paper === paper.value : !row.dataset.apart;
  }

  function fits(row) {
    return isOfSource(row) && fields.every(f => f.name === 'sort' || !f.value || (f.name === 'words'
      ? (row.id + ' ' + row.textContent).toLowerCase().includes(f.value.toLowerCase())
      : row.dataset[f.name] === f.value));
  }

  function rank(row, key) {
    return key in ORDERS ? ranks[key + row.dataset[key]] * (key === 'severity' ? -1 : 1) : 0;
  }

  function show() {
    const key = fields.find(f => f.name === 'sort').value;
    fitting = rows.filter(fits).sort((a, b) => rank(a, key) - rank(b, key) || a.dataset.order - b.dataset.order);
    const target = location.hash.slice(1);
    let visible = 0;
    for (const row of rows) row.hidden = true;
    fitting.forEach((row, i) => {
      row.hidden = !(all || i < AT_ONCE || row.id === target);
      visible += !row.hidden;
      body.append(row);
    });
    more.hidden = visible === fitting.length;
    more.textContent = 'Show all ' + fitting.length;
    const part = visible < fitting.length ? ', ' + visible + ' of them shown' : '';
    shown.textContent = fitting.length + ' of ' + rows.filter(isOfSource).length + ' claims' + part;
  }

  function write() {
    const chosen = new URLSearchParams();
    for (const f of fields) if (f.value && f.value !== 'order') chosen.set(f.name, f.value);
    history.replaceState(null, '', '#' + (String(chosen) || 'claims'));
    all = false;
    show();
  }

  function read() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const row = rows.find(r => r.id === hash);
    const chosen = new URLSearchParams(hash.includes('=') ? location.hash.slice(1) : '');
    if (row || hash.includes('=')) {
      for (const f of fields) f.value = chosen.get(f.name) || (f.name === 'sort' ? 'order' : '');
    }
    if (row && row.dataset.apart) paper.value = row.dataset.paper;
    show();
    if (row) row.scrollIntoView({ block: 'center' });
    else if (hash.includes('=')) root.scrollIntoView();
  }

  function save(kind) {
    const records = fitting.map(row => Object.assign({ id: row.id, quote: row.querySelector('q').textContent },
      ...COLUMNS.map(c => ({ [c]: row.dataset[c] || '' }))));
    const cell = v => '"' + v.replaceAll('"', '""') + '"';
    const lines = [['id', 'quote', ...COLUMNS], ...records.map(r => Object.values(r))];
    const text = kind === 'json' ? JSON.stringify(records, null, 1) : lines.map(l => l.map(cell).join(',')).join('\r\n');
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], { type: kind === 'json' ? 'application/json' : 'text/csv' }));
    link.download = 'verdicts.' + kind;
    link.click();
    URL.revokeObjectURL(link.href);
  }

  for (const f of fields) f.addEventListener('input', write);
  for (const b of root.querySelectorAll('.claims-download button')) b.addEventListener('click', () => save(b.name));
  more.addEventListener('click', () => { all = true; show(); });
  root.querySelector('form').addEventListener('submit', e => e.preventDefault());
  window.addEventListener('hashchange', read);
  read();
})();

// Long tables sort by a click on a heading, and show the rows that hold given words. Without scripts all rows stand there.
document.addEventListener("DOMContentLoaded", () => {
  const LONG = 12; // rows: below that a table is taken in at a look

  const figure = (text) => {
    const found = text.replaceAll(",", "").match(/^[-+]?[\d.]+(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };

  function compare(a, b) {
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1); // what is blank comes last
    const [x, y] = [figure(a), figure(b)];
    return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function sortable(table, heading, place) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[place].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const blank = !text(a) || !text(b);
        return compare(text(a), text(b)) * (down && !blank ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  }

  function filterable(table) {
    const bar = document.createElement("p");
    const label = document.createElement("label");
    const words = document.createElement("input");
    const count = document.createElement("output");
    bar.className = "kdc-filter";
    words.type = "search";
    label.append("only rows with ", words);
    bar.append(label, " ", count);
    (table.closest(".kdc-scroll") ?? table).before(bar);
    words.addEventListener("input", () => {
      const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !asked.every((word) => text.includes(word));
      }
      count.textContent = asked.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    });
  }

  for (const table of document.querySelectorAll("table.kdc-table")) {
    if (!table.tHead || !table.tBodies[0] || table.tBodies[0].rows.length < LONG) continue;
    [...table.tHead.rows[0].cells].forEach((heading, place) => sortable(table, heading, place));
    filterable(table);
  }
});

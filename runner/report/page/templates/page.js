"use strict";
// Adds sorting to tables with 2 rows or more, and a filter to those with 6 or more; `plain` tables stay as they are.
// Without this script the tables are complete.
for (const table of document.querySelectorAll("table:not(.plain)")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending", numeric = head.classList.contains("n");
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const keyOf = cell => numeric ? parseFloat(cell.dataset.sort ?? cell.textContent) : cell.textContent.trim();
      const keys = new Map(rows.map(row => [row, keyOf(row.cells[column])]));
      const missing = value => value === "" || Number.isNaN(value);
      body.append(...rows.sort((one, two) => {
        const [a, b] = [keys.get(one), keys.get(two)];
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return descending ? -order : order;
      }));
    });
  });
  if (rows.length < 6) continue;
  const label = document.createElement("label"), input = document.createElement("input"), matches = document.createElement("output");
  input.type = "search";
  input.setAttribute("aria-controls", table.id);
  label.append("Filter ", input);
  const line = document.createElement("p");
  line.className = "filter";
  line.append(label, " ", matches);
  table.parentElement.before(line);
  let texts;
  input.addEventListener("input", () => {
    texts ??= new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every(word => texts.get(row).includes(word));
      count += !row.hidden;
    }
    matches.textContent = words.length ? `${count} of ${rows.length}` : "";
  });
}

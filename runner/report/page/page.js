"use strict";
// Sorting and filtering, as an addition: without this script every table is there, in the order of its runs.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  if (rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", numbers = head.classList.contains("n");
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = row => row.cells[column].textContent.trim();
      const key = new Map(rows.map(row => [row, numbers ? parseFloat(text(row)) : text(row)]));
      const absent = value => value === "" || Number.isNaN(value);
      body.append(...rows.sort((one, two) => {
        const [a, b] = [key.get(one), key.get(two)];
        if (absent(a) || absent(b)) return absent(a) - absent(b);
        const order = numbers ? a - b : a.localeCompare(b, "en", { numeric: true });
        return down ? -order : order;
      }));
    });
  });
  if (rows.length < 6) continue;
  const label = document.createElement("label"), input = document.createElement("input"), shown = document.createElement("output");
  input.type = "search";
  input.setAttribute("aria-controls", table.id);
  label.append("Filter ", input);
  const line = document.createElement("p");
  line.className = "filter";
  line.append(label, " ", shown);
  table.parentElement.before(line);
  const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.hidden = !words.every(word => texts.get(row).includes(word));
      count += !row.hidden;
    }
    shown.textContent = words.length ? `${count} of ${rows.length}` : "";
  });
}

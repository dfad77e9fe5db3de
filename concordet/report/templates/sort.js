// Sorts a table by the column whose heading is clicked; a second click turns the order; empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.querySelectorAll("th[data-column]")];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  for (const heading of headings) {
    heading.querySelector("button").addEventListener("click", () => {
      const column = Number(heading.dataset.column);
      const before = heading.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : heading.dataset.order;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].sort((first, second) => {
        const a = value(first, column), b = value(second, column);
        return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
      });
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      table.tBodies[0].append(...rows);
    });
  }
}

// A long table of classes starts with its first 25 rows, in whichever order it is sorted.
for (const table of document.querySelectorAll("table.classes")) {
  const rows = table.tBodies[0].rows.length;
  if (rows <= 30) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "more";
  button.textContent = `Show all ${rows} classes`;
  button.addEventListener("click", () => { table.classList.remove("short"); button.remove(); });
  table.classList.add("short");
  table.after(button);
}

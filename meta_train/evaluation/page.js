for (const holder of document.querySelectorAll(".table")) {
  const table = holder.querySelector("table"), body = table.tBodies[0];
  if (holder.dataset.search !== undefined) {
    const label = document.createElement("label"), input = document.createElement("input");
    input.type = "search";
    label.append("Rows with ", input);
    holder.before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(" ");
      for (const row of body.rows) {
        const cells = [...row.cells].map(cell => cell.textContent);
        const text = cells.join(" ").toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
    });
  }
  if (body.rows.length < 2) continue;
  table.classList.add("sortable");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const key = row => row.cells[column].dataset.key;
      const rows = [...body.rows];
      const numbers = rows.every(row => key(row) === "inf" || !isNaN(+key(row)));
      // First the highest number, or the start of the alphabet.
      const now = head.getAttribute("aria-sort");
      const down = now === null ? numbers : now === "ascending";
      const number = text => text === "inf" ? Infinity : +text;
      const value = row => numbers ? number(key(row)) : key(row);
      rows.sort((a, b) => {
        const x = value(a), y = value(b), order = x < y ? -1 : x > y ? 1 : 0;
        return down ? -order : order;
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}

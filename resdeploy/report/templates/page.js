"use strict";
// Tables sort by the column whose title is pressed: up, then down. Without this script they are tables all the same.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  table.querySelectorAll("thead th").forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], down ? -1 : 1)));
    });
  });
}

// Numbers by their value, words by the alphabet; what has no value comes last, whichever way is sorted.
function compare(a, b, sign) {
  const none = (cell) => cell.textContent === "-" && !("key" in cell.dataset);
  if (none(a) || none(b)) return none(a) - none(b);
  if ("key" in a.dataset && "key" in b.dataset) return sign * (Number(a.dataset.key) - Number(b.dataset.key));
  return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}

// On paper nothing can be opened.
const opened = [];
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    opened.push(part);
  }
});
addEventListener("afterprint", () => {
  for (const part of opened.splice(0)) part.open = false;
});

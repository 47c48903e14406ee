"use strict";
(() => {
  const tip = document.getElementById("tip");
  const table = document.getElementById("encoders");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const dots = [...document.querySelectorAll("svg [data-name]")];
  const named = (list, name) => list.filter((element) => element.dataset.name === name);

  // Pointing at a dot or a row, with the mouse or the keyboard, shows the options and lights its counterpart.
  let current = null;
  const show = (target) => {
    hide();
    current = target;
    const name = target.closest("[data-name]").dataset.name;
    for (const element of [...named(rows, name), ...named(dots, name)]) element.classList.add("lit");
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    place();
  };
  const place = () => {
    const at = current.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const fits = at.right + 10 + size.width < innerWidth;
    const left = fits ? at.right + 10 : at.left - 10 - size.width;
    tip.style.left = `${Math.max(8, Math.min(left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(at.top, innerHeight - size.height - 8))}px`;
  };
  const hide = () => {
    tip.hidden = true;
    current = null;
    for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  };
  const tipped = (event) => event.target.closest && event.target.closest("[data-tip]");
  for (const kind of ["pointerover", "focusin"])
    document.addEventListener(kind, (event) => (tipped(event) ? show(tipped(event)) : kind === "pointerover" && hide()));
  document.addEventListener("focusout", hide);
  // Focus brings what is out of view into it: the text goes along. What the mouse points at is another thing by then.
  document.addEventListener("scroll", () => (current && current === document.activeElement ? place() : hide()), true);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // A click or Enter on a dot brings its row into view.
  const find = (dot) => {
    const box = table.parentElement;
    for (const row of named(rows, dot.dataset.name)) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  };
  for (const dot of dots) {
    dot.addEventListener("click", () => find(dot));
    dot.addEventListener("keydown", (event) => event.key === "Enter" && find(dot));
  }

  // Sorting: numbers by value, the rest as text; what is empty stays last either way.
  const value = (row, column) => {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    const text = cell.textContent;
    return text === "–" ? null : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sorted = rows.map((row) => [value(row, column), row]).sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return up ? compare(a, b) : compare(b, a);
      });
      body.append(...sorted.map(([, row]) => row));
    });
  });

  // Filtering: rows that hold all words stay, the others' dots fade.
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let kept = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      kept += !row.hidden;
      for (const dot of named(dots, row.dataset.name)) dot.classList.toggle("out", row.hidden);
    });
    count.textContent = `${kept} of ${rows.length}`;
  };
  filter.addEventListener("input", apply);
  apply();
})();

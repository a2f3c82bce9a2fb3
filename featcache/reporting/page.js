// Sorts tables, draws charts when they come into view, and opens what is folded before it is printed.

const read = (cell) => {
  const text = cell ? cell.textContent.trim() : "";
  const found = text.replaceAll(",", "").replaceAll("−", "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
  return { text, value: found ? Number(found[0]) : NaN };
};

const compare = (one, other) => {
  if (!one.text || !other.text) return (one.text ? 0 : 1) - (other.text ? 0 : 1); // empty cells come last
  if (!Number.isNaN(one.value) && !Number.isNaN(other.value)) return one.value - other.value;
  return one.text.localeCompare(other.text, undefined, { numeric: true });
};

const sort = (head) => {
  const table = head.closest("table");
  const heads = [...head.parentElement.children];
  const column = heads.indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, key: read(row.cells[column]) }));
  rows.sort((one, other) => {
    const order = compare(one.key, other.key);
    return down && one.key.text && other.key.text ? -order : order;
  });
  body.append(...rows.map(({ row }) => row));
};

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

const themes = JSON.parse(document.getElementById("themes").textContent);
const night = matchMedia("(prefers-color-scheme: dark)");

const draw = async (figure) => {
  const place = figure.querySelector(".live");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  try {
    await window.vegaEmbed(place, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
      config: night.matches ? themes.dark : themes.light,
      logLevel: 1, tooltip: { disableDefaultStyle: true },
    });
    figure.classList.add("drawn");
  } catch (error) {
    console.warn(error); // the picture stays
  }
};

const figures = [...document.querySelectorAll("figure.chart")];
const watch = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (!isIntersecting || !target.clientWidth) continue;
    watch.unobserve(target);
    draw(target);
  }
}, { rootMargin: "400px" });
figures.forEach((figure) => watch.observe(figure));
night.addEventListener("change", () => figures.filter((figure) => figure.classList.contains("drawn")).forEach(draw));

for (const text of document.querySelectorAll("p.copy")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copies";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  });
  text.after(button);
}

const open = (place) => {
  const folded = place && document.getElementById(place)?.closest("details");
  if (folded) folded.open = true;
};
addEventListener("hashchange", () => open(location.hash.slice(1)));
open(location.hash.slice(1));
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((folded) => { folded.open = true; });
});

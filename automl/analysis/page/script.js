// Unpacks plotly, draws each figure when it comes near the screen, and sorts tables of trials.
"use strict";
(() => {
  // Figures.
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const axis = { gridcolor: "rgba(125,138,155,0.25)", zeroline: false, automargin: true };
  const template = {
    layout: {
      font: { family: font, size: 12, color: "#1c2430" },
      colorway: ["#2f6fd0", "#d0562f", "#2f9a6a", "#8a5cc9", "#b58a1b"],
      paper_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { align: "left" },
      xaxis: axis,
      yaxis: axis,
    },
  };
  const config = { responsive: true, displayModeBar: false, displaylogo: false };
  const touched = matchMedia("(pointer: coarse)").matches;
  const boxes = Array.from(document.querySelectorAll(".figure"));
  let printing = false;

  // Plotly is compressed to a third; the page's policy holds the hash of the unpacked script.
  async function unpack() {
    const packed = document.getElementById("plotly").textContent;
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // Narrow screens are too small for axes side by side: put them one below the other.
  function turn(figure, plot) {
    const { layout } = figure;
    const swap = (item, one, other) => ([item[one], item[other]] = [item[other], item[one]]);
    figure.data.forEach((trace) => swap(trace, "x", "y"));
    layout.shapes.forEach((line) => {
      swap(line, "x0", "y0");
      swap(line, "x1", "y1");
    });
    layout.annotations.forEach((label) => {
      swap(label, "x", "y");
      Object.assign(label, { xanchor: "center", yanchor: "top", xshift: 0, yshift: 0 });
      label.font.size = 9;
    });
    swap(layout, "xaxis", "yaxis");
    const axes = layout.yaxis.ticktext.length;
    Object.assign(layout.yaxis, {
      range: [axes - 0.6, -0.6],
      tickangle: 0,
      ticklabelposition: "inside top",
      fixedrange: true,
    });
    Object.assign(layout, { height: axes * 64, margin: { l: 16, r: 16, t: 8, b: 8 } });
    plot.style.height = `${layout.height}px`;
    plot.style.width = "100%";
  }

  function draw(box) {
    if (box.dataset.drawn || !window.Plotly) return;
    box.dataset.drawn = "yes";
    const figure = JSON.parse(box.querySelector("script").textContent);
    figure.layout.template = template;
    // A finger that moves over a figure scrolls the page; a mouse zooms.
    if (touched) figure.layout.dragmode = false;
    const plot = box.querySelector(".plot");
    if (plot.offsetWidth > box.clientWidth) turn(figure, plot);
    Plotly.newPlot(plot, figure.data, figure.layout, config);
  }

  function watch() {
    if (printing || !("IntersectionObserver" in window)) {
      boxes.forEach(draw);
      return;
    }
    const observer = new IntersectionObserver(
      (seen) =>
        seen
          .filter((one) => one.isIntersecting)
          .forEach((one) => {
            observer.unobserve(one.target);
            draw(one.target);
          }),
      { rootMargin: "600px" },
    );
    boxes.forEach((box) => observer.observe(box));
  }

  function tooOld() {
    boxes.forEach((box) => {
      box.querySelector(".plot").textContent = "This browser is too old to draw figures.";
    });
  }

  addEventListener("beforeprint", () => {
    printing = true;
    boxes.forEach(draw);
  });
  if (boxes.length) unpack().then(watch, tooOld);

  // Tables that can be sorted.
  function key(row, place) {
    const cell = row.cells[place];
    const text = cell.dataset.value ?? cell.textContent;
    const value = Number(text);
    return text === "" ? null : Number.isNaN(value) ? text : value;
  }

  function compare(one, other) {
    if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
    return typeof one === "number" ? -1 : 1;
  }

  function sort(table, place, descending) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [key(row, place), row]);
    // Trials without a value stay last in both directions.
    rows.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return descending ? compare(other, one) : compare(one, other);
    });
    body.append(...rows.map(([, row]) => row));
    Array.from(table.tHead.rows[0].cells).forEach((head, at) => {
      if (at === place) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function sortable(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const ascends = (place) => heads[place].getAttribute("aria-sort") === "ascending";
    const label = document.createElement("label");
    const choice = document.createElement("select");
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => {
        sort(table, place, ascends(place));
        choice.value = String(place);
      });
      choice.add(new Option(button.textContent, String(place)));
      head.append(button);
    });
    // Narrow screens show each row as a block that names its cells, and no heads.
    const names = heads.map((head) => head.textContent);
    Array.from(table.tBodies[0].rows).forEach((row) => {
      Array.from(row.cells).forEach((cell, place) => (cell.dataset.name = names[place]));
    });
    table.classList.add("blocks");
    const turn = document.createElement("button");
    turn.type = "button";
    turn.textContent = "reverse";
    turn.addEventListener("click", () => sort(table, choice.selectedIndex, ascends(choice.selectedIndex)));
    choice.addEventListener("change", () => sort(table, choice.selectedIndex, false));
    label.append("sort by ", choice);
    const bar = document.createElement("div");
    bar.className = "sorting";
    bar.append(label, turn);
    table.closest(".wide").before(bar);
    heads[0].setAttribute("aria-sort", "ascending");
  }

  document.querySelectorAll("table.trials").forEach(sortable);
})();

// Draws each figure when it comes near the screen, so that a phone need not draw all at once.
"use strict";
(() => {
  const config = { responsive: true, displayModeBar: false, displaylogo: false };
  const touched = matchMedia("(pointer: coarse)").matches;

  function draw(box) {
    if (box.dataset.drawn) return;
    box.dataset.drawn = "yes";
    const figure = JSON.parse(box.querySelector("script").textContent);
    // A finger that moves over a figure scrolls the page; a mouse zooms.
    if (touched) figure.layout.dragmode = false;
    Plotly.newPlot(box.querySelector(".plot"), figure.data, figure.layout, config);
  }

  const boxes = Array.from(document.querySelectorAll(".figure"));
  addEventListener("beforeprint", () => boxes.forEach(draw));
  if (!("IntersectionObserver" in window)) {
    boxes.forEach(draw);
    return;
  }
  const watch = new IntersectionObserver(
    (seen) =>
      seen
        .filter((one) => one.isIntersecting)
        .forEach((one) => {
          watch.unobserve(one.target);
          draw(one.target);
        }),
    { rootMargin: "600px" },
  );
  boxes.forEach((box) => watch.observe(box));
})();

"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const root = document.documentElement;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const short = (v) => (v == null ? "–" : Number(v.toPrecision(5)).toString());
  let drawn = [];

  // a dotted line at the epoch of the saved weights
  const markAt = (epoch) => ({
    hooks: {
      draw: [(u) => {
        const x = u.valToPos(epoch, "x", true);
        const { ctx, bbox } = u;
        if (x < bbox.left || x > bbox.left + bbox.width) return;
        ctx.save();
        ctx.strokeStyle = color("--faint");
        ctx.lineWidth = devicePixelRatio;
        ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.fillStyle = color("--faint");
        ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
        ctx.textBaseline = "bottom";
        const gap = (ctx.textAlign === "right" ? -5 : 5) * devicePixelRatio;
        ctx.fillText("best", x + gap, bbox.top + bbox.height - 4 * devicePixelRatio);
        ctx.restore();
      }],
    },
  });

  const draw = (place, chart) => {
    const axis = {
      stroke: color("--faint"),
      grid: { stroke: color("--line"), width: 1 },
      ticks: { stroke: color("--line"), width: 1 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
    };
    const few = chart.x.length < 40;
    return new uPlot({
      width: place.clientWidth,
      height: 220,
      scales: { x: { time: false } },
      cursor: { drag: { x: true, y: false } },
      axes: [
        { ...axis, label: "epoch", labelSize: 18, size: 32 },
        { ...axis, label: chart.unit || " ", labelSize: 18, size: 56, values: (u, all) => all.map(short) },
      ],
      series: [
        { label: "epoch" },
        ...chart.series.map((s, i) => ({
          label: s.label,
          stroke: color(`--c${i % 10}`),
          width: 1.8,
          points: { show: few, size: 5 },
          spanGaps: false,
          value: (u, v) => short(v),
        })),
      ],
      plugins: chart.mark ? [markAt(chart.mark)] : [],
    }, [chart.x, ...chart.series.map((s) => s.values)], place);
  };

  const drawAll = () => {
    drawn.forEach(({ plot }) => plot.destroy());
    drawn = [...document.querySelectorAll("[data-chart]")].map((place) => ({
      place, plot: draw(place, charts[Number(place.dataset.chart)]),
    }));
  };

  drawAll();
  addEventListener("resize", () => {
    drawn.forEach(({ place, plot }) => plot.setSize({ width: place.clientWidth, height: 220 }));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();

"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const el = (id) => document.getElementById(id);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (name, options = {}, ...children) => {
    const made = Object.assign(document.createElement(name), options);
    made.append(...children);
    return made;
  };
  let code = [...data.mean];
  let base = [...code];       // before an attribute is added
  let chosen = 0;             // the datum whose other arguments are used
  let ends = { a: null, b: null };
  let seed = 1;

  // ---- questions: of several decodings only the latest is asked
  const ask = async (name, values) => {
    const reply = await fetch(name, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
    });
    const answer = await reply.json();
    el("problem").hidden = !answer.error;
    if (answer.error) {
      el("problem").textContent = answer.error;
      throw new Error(answer.error);
    }
    return answer;
  };
  const guarded = (action) => (...args) => action(...args).catch((error) => {
    el("problem").hidden = false;
    el("problem").textContent = error.message === "Failed to fetch" ? "The server has ended." : error.message;
  });
  let running = false, waiting = false;
  const decode = guarded(async () => {
    waiting = true;
    if (running) return;
    running = true;
    try {
      while (waiting) {
        waiting = false;
        const start = performance.now();
        const { shown } = await ask("decode", { codes: [code], index: chosen });
        show(el("now"), shown[0]);
        el("time").textContent = `${Math.max(1, Math.round(performance.now() - start))} ms`;
        document.body.dataset.decoded = Number(document.body.dataset.decoded || 0) + 1;
      }
    } finally {
      running = false;
    }
  });

  // ---- a datum: a picture, a text, or bars
  const show = (place, item) => {
    if (typeof item === "string" && data.kind === "images") {
      const image = place.querySelector("img") || place.appendChild(make("img", { alt: "" }));
      image.src = item;
    } else if (typeof item === "string") {
      place.replaceChildren(make("p", { textContent: item }));
    } else {
      const canvas = place.querySelector("canvas") || place.appendChild(make("canvas"));
      const small = place.clientWidth < 200;
      canvas.width = 2 * (small ? 60 : 300);
      canvas.height = canvas.width;
      const pen = canvas.getContext("2d");
      const values = item.map((v) => v ?? 0);
      const low = Math.min(0, ...values), high = Math.max(0, ...values, 1e-9), pad = canvas.width / 20;
      const at = (v) => canvas.height - pad - (v - low) / (high - low) * (canvas.height - 2 * pad);
      const step = (canvas.width - 2 * pad) / values.length;
      pen.fillStyle = color("--c0");
      values.forEach((v, i) => pen.fillRect(pad + i * step, Math.min(at(v), at(0)), Math.max(step * 0.8, 1), Math.abs(at(v) - at(0))));
      if (!small) {
        pen.fillStyle = color("--faint");
        pen.font = "22px system-ui, sans-serif";
        pen.fillText(high.toPrecision(3), pad, pad + 8);
      }
      canvas.title = values.map((v, i) => `column ${i}: ${v.toPrecision(4)}`).slice(0, 40).join("\n");
    }
  };
  const strip = (place, shown, codes) => {
    place.replaceChildren(...shown.map((item, i) => {
      const tile = make("button", { type: "button", className: "tile", title: "go there" });
      tile.addEventListener("click", () => go(codes[i]));
      return tile;
    }));
    [...place.children].forEach((tile, i) => show(tile, shown[i]));
  };

  // ---- canvases as sharp as the screen, drawn in units of 300 by 300
  const SIDE = 300;
  const penOf = (canvas) => {
    const dots = Math.ceil(SIDE * (window.devicePixelRatio || 1));
    if (canvas.width !== dots) canvas.width = canvas.height = dots;
    const pen = canvas.getContext("2d");
    pen.setTransform(dots / SIDE, 0, 0, dots / SIDE, 0, 0);
    pen.clearRect(0, 0, SIDE, SIDE);
    return pen;
  };

  // ---- moving
  const sliders = data.order.map((dim) => {
    const input = make("input", { type: "range", min: data.low[dim], max: data.high[dim], step: (data.high[dim] - data.low[dim]) / 400 });
    const value = make("output");
    input.setAttribute("aria-label", data.names[dim]);
    input.addEventListener("input", () => { code[dim] = Number(input.value); moved(); });
    el("sliders").append(make("label", { className: "slider" }, make("span", { textContent: data.names[dim], title: data.names[dim] }), input, value));
    return { dim, input, value };
  });
  const refresh = () => {
    sliders.forEach(({ dim, input, value }) => { input.value = code[dim]; value.textContent = code[dim].toFixed(2); });
    drawPad();
    drawMap();
  };
  const moved = () => {
    base = [...code];
    if (el("attribute-amount")) el("attribute-amount").value = 0;
    refresh();
    decode();
  };
  const go = (to) => { code = [...to]; moved(); };

  // ---- the pad
  const pad = el("pad");
  el("dim-x").value = data.order[0];
  el("dim-y").value = data.order[Math.min(1, data.order.length - 1)];
  const dims = () => [Number(el("dim-x").value), Number(el("dim-y").value)];
  const drawPad = () => {
    const [a, b] = dims(), pen = penOf(pad), width = SIDE, height = SIDE;
    const x = (v) => (v - data.low[a]) / (data.high[a] - data.low[a]) * width;
    const y = (v) => height - (v - data.low[b]) / (data.high[b] - data.low[b]) * height;
    pen.strokeStyle = color("--line");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x(0), 0); pen.lineTo(x(0), height);
    pen.moveTo(0, y(0)); pen.lineTo(width, y(0));
    pen.stroke();
    pen.fillStyle = color("--c0");
    pen.strokeStyle = color("--paper");
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x(code[a]), y(code[b]), 8, 0, 7);
    pen.fill();
    pen.stroke();
  };
  const drag = (event) => {
    const box = pad.getBoundingClientRect(), [a, b] = dims();
    const part = (v, size) => Math.min(1, Math.max(0, v / size));
    code[a] = data.low[a] + part(event.clientX - box.left, box.width) * (data.high[a] - data.low[a]);
    code[b] = data.high[b] - part(event.clientY - box.top, box.height) * (data.high[b] - data.low[b]);
    moved();
  };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); drag(event); });
  pad.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  pad.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    dims().forEach((dim, i) => { code[dim] += step[i] * (data.high[dim] - data.low[dim]) / 40; });
    moved();
  });
  ["dim-x", "dim-y"].forEach((id) => el(id).addEventListener("change", drawPad));

  // ---- the map
  const map = el("map");
  const classes = data.labels ? [...new Set(data.labels)].sort((a, b) => a - b) : [];
  const few = classes.length > 1 && classes.length <= 20;
  const spans = [0, 1].map((i) => {
    const values = data.map.map((p) => p[i]), low = Math.min(...values), high = Math.max(...values);
    return [low, (high - low) || 1];
  });
  const mapAt = (point) => [
    12 + (point[0] - spans[0][0]) / spans[0][1] * (SIDE - 24),
    SIDE - 12 - (point[1] - spans[1][0]) / spans[1][1] * (SIDE - 24),
  ];
  let marked = null;
  const drawMap = () => {
    const pen = penOf(map);
    pen.globalAlpha = 0.75;
    data.map.forEach((point, i) => {
      pen.fillStyle = color(`--c${few ? classes.indexOf(data.labels[i]) % 10 : 0}`);
      pen.beginPath();
      pen.arc(...mapAt(point), 2.6, 0, 7);
      pen.fill();
    });
    pen.globalAlpha = 1;
    if (few) {
      pen.font = "bold 15px system-ui, sans-serif";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.lineWidth = 4;
      classes.forEach((name) => {
        const own = data.map.filter((_, i) => data.labels[i] === name);
        const middle = [0, 1].map((i) => own.map((p) => p[i]).sort((a, b) => a - b)[own.length >> 1]);
        pen.strokeStyle = color("--card");
        pen.fillStyle = color("--ink");
        pen.strokeText(name, ...mapAt(middle));
        pen.fillText(name, ...mapAt(middle));
      });
    }
    if (marked !== null) {
      pen.strokeStyle = color("--ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(...mapAt(data.map[marked]), 7, 0, 7);
      pen.stroke();
    }
  };
  const choose = guarded(async (index) => {
    marked = chosen = index;
    const found = await ask("datum", { index });
    const label = found.label === null ? "" : `, class ${found.label}`;
    el("datum-name").textContent = `Datum ${index}${label}.` + (found.most ? ` The largest standard deviation is ${found.most.toPrecision(2)}.` : "");
    show(el("datum-x"), found.x);
    if (found.mean) {
      show(el("datum-mean"), found.mean);
      show(el("datum-spread"), found.spread);
    }
    strip(el("draws"), found.draws, found.draw_codes);
    go(found.code);
  });
  map.addEventListener("click", (event) => {
    const box = map.getBoundingClientRect();
    const x = (event.clientX - box.left) * SIDE / box.width, y = (event.clientY - box.top) * SIDE / box.height;
    let best = 0, least = Infinity;
    data.map.forEach((point, i) => {
      const [a, b] = mapAt(point), distance = (a - x) ** 2 + (b - y) ** 2;
      if (distance < least) { least = distance; best = i; }
    });
    choose(best);
  });

  // ---- from A to B, towards a class, samples
  const interpolate = guarded(async () => {
    if (!ends.a || !ends.b) {
      const [one, other] = await Promise.all([0, Math.min(1, data.num_data - 1)].map((index) => ask("datum", { index })));
      ends = { a: ends.a || one.code, b: ends.b || other.code };
    }
    const { codes, shown } = await ask("between", { ...ends, path: el("path").value });
    strip(el("between"), shown, codes);
  });
  el("interpolate").addEventListener("click", interpolate);
  el("path").addEventListener("change", interpolate);
  ["a", "b"].forEach((end) => el(`set-${end}`).addEventListener("click", () => { ends[end] = [...code]; interpolate(); }));
  el("center").addEventListener("click", () => go(data.mean));
  const attribute = el("attribute");
  if (attribute) {
    const apply = () => {
      const direction = data.attributes[attribute.value], amount = Number(el("attribute-amount").value);
      code = base.map((v, i) => v + amount * direction[i]);
      refresh();
      decode();
    };
    el("attribute-amount").addEventListener("input", apply);
    attribute.addEventListener("change", apply);
  }
  const sample = guarded(async () => {
    const { codes, shown } = await ask("sample", { seed: seed++ });
    strip(el("samples"), shown, codes);
  });
  el("sample").addEventListener("click", sample);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  refresh();
  (async () => { await choose(0); await sample(); await interpolate(); document.body.dataset.ready = "yes"; })();
})();

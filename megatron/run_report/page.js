
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs;
  // axis: what the horizontal axis shows; hidden: numbers of runs; at: where the reader points to, on that axis.
  const state = { axis: "iteration", hidden: new Set(), at: null };
  const MARGIN = { left: 58, right: 14, top: 10, bottom: 24 };
  const charts = [];

  // ---- numbers

  function interpolated(xs, ys, x) {
    let low = 0, high = xs.length - 1;
    if (x <= xs[low]) return ys[low];
    if (x >= xs[high]) return ys[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    return ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / (xs[high] - xs[low]);
  }

  // Of an iteration on the axis that is shown; null where the run has not recorded it.
  function position(run, iteration) {
    if (state.axis === "iteration") return iteration;
    const others = run.axes[state.axis];
    return others ? interpolated(run.axes.iteration, others, iteration) : null;
  }

  function positions(run, grid) {
    run.cache = run.cache || {};
    const key = state.axis + grid;
    if (!(key in run.cache)) run.cache[key] = run.grids[grid].map((iteration) => position(run, iteration));
    return run.cache[key];
  }

  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle;
    }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  }

  function withLetter(value, letters, digits) {
    const size = Math.abs(value);
    for (let power = letters.length; power > 0; power--) {
      const unit = 1000 ** power;
      if (size >= 0.99995 * unit) return trimmed((value / unit).toPrecision(digits)) + " " + letters[power - 1];
    }
    return trimmed(value.toPrecision(digits));
  }

  function trimmed(text) {
    return text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
  }

  const COUNTS = ["k", "M", "B", "T"], SCIENTIFIC = ["k", "M", "G", "T", "P", "E"];

  function shown(value, unit, digits = 4) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e");
    if (size < 1e4) return trimmed(value.toPrecision(digits));
    if (size < 1e18) return withLetter(value, unit === "FLOPs/s" ? SCIENTIFIC : COUNTS, digits);
    return value.toExponential(2);
  }

  function duration(seconds) {
    const whole = Math.round(seconds), hours = Math.floor(whole / 3600), two = (n) => String(n).padStart(2, "0");
    return hours + ":" + two(Math.floor(whole / 60) % 60) + ":" + two(whole % 60);
  }

  function place(x, exact) {
    if (state.axis === "time") return x < 120 ? trimmed(x.toPrecision(3)) + " s" : duration(x);
    if (state.axis === "tokens") return withLetter(x, COUNTS, exact ? 4 : 3) + (exact ? " tokens" : "");
    return exact ? "iteration " + Math.round(x).toLocaleString("en") : Math.round(x).toLocaleString("en");
  }

  // ---- axes

  const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

  function step(span, count, clock) {
    const wanted = span / count;
    if (clock && wanted >= 1 && wanted <= 86400) return CLOCK.find((s) => s >= wanted);
    const power = 10 ** Math.floor(Math.log10(wanted));
    return power * [1, 2, 5, 10].find((factor) => factor * power >= 0.999999 * wanted);
  }

  function linearTicks(low, high, count, clock) {
    const by = step(high - low, count, clock), found = [];
    for (let n = Math.ceil(low / by - 1e-9); n * by <= high + 1e-9 * by; n++) found.push(n * by || 0);
    return found;
  }

  function logTicks(low, high) {
    const found = [], decades = Math.log10(high / low);
    if (decades < 0.7) return linearTicks(low, high, 4).filter((tick) => tick > 0);
    const every = Math.ceil(decades / 5);
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (every > 1 && power % every) continue;
      for (const factor of decades > 2.5 ? [1] : [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (tick >= low && tick <= high) found.push(tick);
      }
    }
    return found;
  }

  function visible() {
    return runs.map((run, number) => number).filter((number) => !state.hidden.has(number));
  }

  // [first, last] position of everything that the main charts show, the same for all charts.
  function domain() {
    let low = Infinity, high = -Infinity;
    for (const number of visible()) {
      const run = runs[number];
      for (const { x: grid } of Object.values(run.series)) {
        const xs = positions(run, grid);
        if (xs.length && xs[0] !== null) {
          low = Math.min(low, xs[0]);
          high = Math.max(high, xs[xs.length - 1]);
        }
      }
    }
    if (low > high) return [0, 1];
    if (low < 0.1 * high) low = 0;
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  }

  // ---- drawing

  function element(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.appendChild(made);
    return made;
  }

  function html(name, className, text, parent) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== null) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }

  class Chart {
    constructor(described, parent, height) {
      Object.assign(this, described);
      this.height = height;
      this.logarithmic = false;
      this.figure = html("figure", "", null, parent);
      this.figure.id = "chart-" + described.key;
      const caption = html("figcaption", "", described.title, this.figure);
      if (described.unit) html("small", "", described.unit, caption);
      if (described.log) this.addLogButton(caption);
      this.readout = html("div", "read", null, this.figure);
      this.svg = element("svg", { role: "img", tabindex: 0, "aria-label": described.title, height }, this.figure);
      this.svg.addEventListener("pointermove", (event) => point(this.positionAt(event)));
      this.svg.addEventListener("pointerleave", () => point(null));
      this.svg.addEventListener("keydown", (event) => this.onKey(event));
      new ResizeObserver(() => this.draw()).observe(this.figure);
    }

    addLogButton(caption) {
      const positive = this.curves(runs.keys()).every(({ series }) => series.y.every((y) => y === null || y > 0));
      const button = html("button", "log", "log", caption);
      button.type = "button";
      button.title = positive ? "Logarithmic vertical axis" : "There are values that are not above 0";
      button.disabled = !positive;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        this.logarithmic = !this.logarithmic;
        button.setAttribute("aria-pressed", String(this.logarithmic));
        this.draw();
      });
    }

    // The runs of these numbers that have values here and a place for them on the axis.
    curves(numbers) {
      return [...numbers].filter((number) => this.key in runs[number].series).map((number) => {
        const run = runs[number], series = run.series[this.key];
        return { run, series, xs: positions(run, series.x) };
      }).filter(({ xs }) => xs.length && xs[0] !== null);
    }

    draw() {
      this.width = this.svg.clientWidth;
      if (!this.width) return;
      this.shownCurves = this.curves(visible());
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.scale();
      this.drawAxes();
      for (const curve of this.shownCurves) this.drawCurve(curve);
      this.pointer = element("g", {}, this.svg);
      this.read();
    }

    scale() {
      const [low, high] = domain();
      const wide = this.width - MARGIN.left - MARGIN.right, tall = this.height - MARGIN.top - MARGIN.bottom;
      this.x = (value) => MARGIN.left + wide * (value - low) / (high - low);
      this.back = (pixel) => Math.min(high, Math.max(low, low + (high - low) * (pixel - MARGIN.left) / wide));
      let bottom = Infinity, top = -Infinity;
      for (const { series } of this.shownCurves) {
        for (const values of [series.y, series.low || [], series.high || []]) {
          for (const value of values) {
            if (value === null || (this.logarithmic && value <= 0)) continue;
            bottom = Math.min(bottom, value);
            top = Math.max(top, value);
          }
        }
      }
      if (bottom > top) [bottom, top] = [0, 1];
      if (this.zero && !this.logarithmic) bottom = Math.min(0, bottom);
      if (bottom === top) [bottom, top] = bottom > 0 ? [bottom / 1.05, top * 1.05] : [bottom - 0.5, top + 0.5];
      const scaled = this.logarithmic ? Math.log : (value) => value;
      const pad = 0.05 * (scaled(top) - scaled(bottom));
      const from = this.zero && bottom === 0 ? 0 : scaled(bottom) - pad, to = scaled(top) + pad;
      this.y = (value) => MARGIN.top + tall * (1 - (scaled(value) - from) / (to - from));
      const unscaled = this.logarithmic ? Math.exp : (value) => value;
      this.range = { low, high, bottom: unscaled(from), top: unscaled(to) };
    }

    drawAxes() {
      const { low, high, bottom, top } = this.range, floor = this.height - MARGIN.bottom;
      const ticks = this.logarithmic ? logTicks(bottom, top) : linearTicks(bottom, top, this.height > 250 ? 6 : 4);
      for (const tick of ticks) {
        const y = this.y(tick);
        element("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y, y2: y }, this.svg);
        element("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, this.svg).textContent =
          shown(Math.abs(tick) < 1e-12 * Math.abs(top) ? 0 : tick, this.unit);
      }
      const across = linearTicks(low, high, Math.max(2, this.width / 110), state.axis === "time");
      for (const tick of across) {
        if (state.axis === "iteration" && !Number.isInteger(tick)) continue;
        const x = this.x(tick), near = x > this.width - 40;
        element("line", { class: "base", x1: x, x2: x, y1: floor, y2: floor + 4 }, this.svg);
        element("text", { x: near ? this.width - 2 : x, y: floor + 17, "text-anchor": near ? "end" : "middle" }, this.svg)
          .textContent = place(tick, false);
      }
      element("line", { class: "base", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: floor, y2: floor }, this.svg);
    }

    drawCurve({ run, series, xs }) {
      const group = element("g", { class: "c" + run.colour }, this.svg);
      const floor = this.height - MARGIN.bottom;
      for (const iteration of run.resumed) {
        const x = this.x(position(run, iteration));
        element("line", { class: "resumed", x1: x, x2: x, y1: MARGIN.top, y2: floor }, group);
      }
      const at = (n, values) => `${this.x(xs[n]).toFixed(1)},${this.y(values[n]).toFixed(1)}`;
      const stretches = this.stretches(series.y);
      if (this.events) {
        for (const n of stretches.flat()) {
          const x = this.x(xs[n]);
          element("line", { class: "stem", x1: x, x2: x, y1: floor, y2: this.y(series.y[n]) }, group);
        }
      } else {
        for (const stretch of stretches) {
          if (series.low) {
            const upper = stretch.map((n) => at(n, series.high)), lower = stretch.map((n) => at(n, series.low));
            element("path", { class: "range", d: "M" + upper.concat(lower.reverse()).join("L") + "Z" }, group);
          }
          const d = "M" + stretch.map((n) => at(n, series.y)).join("L");
          element("path", { class: run.dashed ? "curve dashed" : "curve", d }, group);
        }
      }
      // A value between gaps would have no length.
      const few = stretches.flat().length <= 40;
      for (const n of few ? stretches.flat() : stretches.filter((s) => s.length === 1).flat()) {
        element("circle", { class: "point", cx: this.x(xs[n]), cy: this.y(series.y[n]), r: 2.2 }, group);
      }
      for (const iteration of series.bad || []) {
        const x = this.x(position(run, iteration)), y = MARGIN.top + 2;
        element("path", { class: "bad", d: `M${x - 3},${y - 3}L${x + 3},${y + 3}M${x - 3},${y + 3}L${x + 3},${y - 3}` }, group);
      }
    }

    // Numbers of points that are drawn as one line.
    stretches(values) {
      const found = [];
      let open = false;
      values.forEach((value, n) => {
        const fit = value !== null && !(this.logarithmic && value <= 0);
        if (fit && open) found[found.length - 1].push(n);
        if (fit && !open) found.push([n]);
        open = fit;
      });
      return found;
    }

    // ---- pointing

    positionAt(event) {
      return this.back(event.clientX - this.svg.getBoundingClientRect().left);
    }

    onKey(event) {
      const by = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
      if (event.key === "Escape") point(null);
      if (!by) return;
      event.preventDefault();
      const { low, high } = this.range, from = state.at === null ? (by < 0 ? high : low) : state.at;
      point(Math.min(high, Math.max(low, from + by * (high - low))));
    }

    // Show the values at the place that is pointed to, else the last ones.
    read() {
      if (!this.pointer) return;
      this.pointer.replaceChildren();
      this.readout.replaceChildren();
      const pointed = state.at !== null;
      if (pointed) {
        const x = this.x(state.at);
        element("line", { class: "cross", x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom }, this.pointer);
        html("span", "", place(state.at, true), this.readout);
      } else if (this.shownCurves.length) {
        html("span", "", "last", this.readout);
      }
      for (const { run, series, xs } of this.shownCurves) {
        const n = pointed ? nearest(xs, state.at) : xs.length - 1;
        const y = !pointed && "last" in series ? series.last : series.y[n];
        const span = html("span", "c" + run.colour, null, this.readout);
        span.title = run.name;
        if (pointed && this.x(state.at) > this.x(xs[xs.length - 1]) + 8) {
          html("b", "", "ended", span);
          continue;
        }
        let text = y === null ? "not finite" : shown(y, this.unit) + (this.unit === "%" ? " %" : "");
        if (pointed && series.low && series.low[n] !== null && series.low[n] < series.high[n]) {
          text += ` (${shown(series.low[n], this.unit)} to ${shown(series.high[n], this.unit)})`;
        }
        html("b", "", text, span);
        if (pointed && y !== null && !(this.logarithmic && y <= 0)) {
          const group = element("g", { class: "c" + run.colour }, this.pointer);
          element("circle", { class: "point", cx: this.x(xs[n]), cy: this.y(y), r: 3.2 }, group);
        }
      }
    }
  }

  let awaited = false;
  function point(at) {
    state.at = at;
    if (awaited) return;
    awaited = true;
    requestAnimationFrame(() => {
      awaited = false;
      for (const chart of charts) chart.read();
    });
  }

  function redraw() {
    for (const chart of charts) chart.draw();
  }

  // ---- controls

  const switches = document.querySelectorAll("[data-axis]");
  for (const button of switches) {
    const axis = button.dataset.axis;
    button.disabled = !runs.some((run) => run.axes[axis]);
    if (button.disabled) button.title = "No run has recorded it";
    button.addEventListener("click", () => {
      state.axis = axis;
      state.at = null;
      for (const other of switches) other.setAttribute("aria-pressed", String(other === button));
      redraw();
    });
  }
  for (const button of document.querySelectorAll("[data-run]")) {
    button.addEventListener("click", () => {
      const number = Number(button.dataset.run);
      if (!state.hidden.delete(number)) state.hidden.add(number);
      button.setAttribute("aria-pressed", String(!state.hidden.has(number)));
      redraw();
    });
  }

  const main = document.getElementById("charts");
  document.getElementById("controls").hidden = !data.charts.length;
  data.charts.forEach((described, n) => charts.push(new Chart(described, main, n ? 200 : 320)));
  const others = document.getElementById("others");
  others.hidden = !data.others.length;
  others.addEventListener("toggle", () => {
    const place = document.getElementById("other_charts");
    if (others.open && !place.children.length) {
      for (const described of data.others) charts.push(new Chart(described, place, 170));
    }
  });
})();

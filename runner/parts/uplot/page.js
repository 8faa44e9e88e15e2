"use strict";
// Draws the charts that the page describes. The page's data hold every number; see runner/parts/charts.py.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => value == null ? "–" : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)
    ? value.toExponential(3) : value.toLocaleString("en", { maximumSignificantDigits: 6 });
  const short = (value) => value == null ? "" : value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)
    ? value.toExponential(1).replace(".0e", "e") : value.toLocaleString("en", { maximumSignificantDigits: 4 });
  const isRound = (x) => [1, 2, 5].some((first) => Math.abs(Math.log10(x / first) - Math.round(Math.log10(x / first))) < 1e-9);
  // As many digits as tell two neighbours on an axis apart.
  const tick = (value, step) => {
    if (!step) return short(value);
    if (Math.abs(value) >= 1e6 || step < 1e-5)
      return value.toExponential(Math.min(8, Math.max(0, Math.ceil(Math.log10(Math.abs(value) / step) - 1e-9))));
    let digits = 0;
    while (digits < 8 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
    return value.toLocaleString("en", { maximumFractionDigits: digits });
  };
  // The width of an axis: that of its longest label. uPlot asks again until the widths no longer change.
  const widest = (u, labels, axis, cycle) => {
    if (cycle > 1) return u.axes[axis]._size;
    u.ctx.font = u.axes[axis].font[0];
    return Math.max(62, 16 + Math.max(...(labels ?? []).map((label) => u.ctx.measureText(label).width)) / devicePixelRatio);
  };
  const charts = (window.relayCharts = []);
  const marks = page.marks;

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    for (const mark of marks) {
      const x = u.valToPos(mark.step, "x", true);
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.strokeStyle = colour("--quiet");
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillStyle = colour("--quiet");
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = x > bbox.left + bbox.width * 0.7 ? "right" : "left";
      const words = ` ${mark.label} `;
      const space = ctx.textAlign === "right" ? x - bbox.left : bbox.left + bbox.width - x;
      if (ctx.measureText(words).width < space) ctx.fillText(words, x, bbox.top + 11 * devicePixelRatio);
    }
    ctx.restore();
  }

  function drawCells(u, spec) {
    const { ctx, bbox } = u;
    const xs = spec.x, rows = spec.rows.length, span = spec.high - spec.low || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = colour("--c0");
    for (let i = 0; i < xs.length; i++) {
      const before = i ? (xs[i - 1] + xs[i]) / 2 : xs[0] - (xs.length > 1 ? (xs[1] - xs[0]) / 2 : 0.5);
      const after = i + 1 < xs.length ? (xs[i] + xs[i + 1]) / 2 : 2 * xs[i] - before;
      const left = u.valToPos(before, "x", true), right = u.valToPos(after, "x", true);
      for (let row = 0; row < rows; row++) {
        const value = spec.values[i][row];
        if (value == null) continue;
        const top = u.valToPos(rows - row, "y", true), bottom = u.valToPos(rows - row - 1, "y", true);
        ctx.globalAlpha = 0.06 + 0.94 * (value - spec.low) / span;
        ctx.fillRect(left, top, right - left + 0.5, bottom - top - (bottom - top > 8 ? 1 : 0));
      }
    }
    ctx.restore();
  }

  function drawPoints(u, spec) {
    const { ctx, bbox } = u, size = 4 * devicePixelRatio;
    ctx.save();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    if (spec.square) {
      ctx.strokeStyle = colour("--quiet");
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(u.valToPos(spec.across[0], "x", true), u.valToPos(spec.across[0], "y", true));
      ctx.lineTo(u.valToPos(spec.across[1], "x", true), u.valToPos(spec.across[1], "y", true));
      ctx.stroke();
      ctx.setLineDash([]);
    }
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    spec.series.forEach((s, i) => {
      ctx.strokeStyle = ctx.fillStyle = colour(`--c${spec.colours[i] % 7}`);
      const at = s.x.map((x, j) => [u.valToPos(x, "x", true), u.valToPos(s.y[j], "y", true)]);
      if (s.line) {
        ctx.beginPath();
        at.forEach(([x, y], j) => j ? ctx.lineTo(x, y) : ctx.moveTo(x, y));
        ctx.stroke();
      }
      ctx.globalAlpha = s.x.length > 100 ? 0.5 : 0.9;
      for (const [x, y] of at) {
        ctx.beginPath();
        ctx.arc(x, y, size, 0, 2 * Math.PI);
        s.hollow ? ctx.stroke() : ctx.fill();
      }
      ctx.globalAlpha = 1;
    });
    ctx.restore();
  }

  function nearest(u, spec) {
    let found = null, least = 40 ** 2;
    spec.series.forEach((s, i) => s.x.forEach((x, j) => {
      const far = (u.valToPos(x, "x") - u.cursor.left) ** 2 + (u.valToPos(s.y[j], "y") - u.cursor.top) ** 2;
      if (far < least) { least = far; found = [i, j]; }
    }));
    return found;
  }

  function tell(u, spec, read) {
    const at = u.cursor.idx, left = u.cursor.left;
    if (spec.kind === "points" && left != null && left >= 0) {
      const found = nearest(u, spec);
      if (found) {
        const [i, j] = found, s = spec.series[i], across = spec.names[s.x[j]] ?? number(s.x[j]);
        const words = s.labels[j] ?? `${spec.axes[0]} ${across}, ${spec.axes[1]} ${number(s.y[j])}`;
        read.innerHTML = `<span style="color:var(--c${spec.colours[i] % 7})">${words}</span>`;
        return;
      }
    }
    if (spec.kind === "points" || at == null || left == null || left < 0) {
      // One curve needs no key: the title names it. Without a pointer, as on a phone, its last value can be read.
      const last = (s) => { const y = s.y.filter((value) => value != null); return number(y[y.length - 1]); };
      read.innerHTML = spec.kind === "curves" && spec.keys.length === 1 ? `last <b>${last(spec.series[0])}</b>`
        : spec.kind === "points" && spec.keys.length === 1 ? ""
        : spec.keys.map((key, i) => `<span style="color:var(--c${spec.colours[i] % 7})"><b>${key}</b>${spec.kind === "curves" ? " " + last(spec.series[i]) : ""}</span>`)
          .join(" &nbsp; ");
      return;
    }
    let words = `${page.across} ${number(u.data[0][at])}`;
    if (spec.kind === "heat") {
      const row = Math.min(spec.rows.length - 1, Math.max(0, Math.floor(spec.rows.length - u.posToVal(u.cursor.top, "y"))));
      read.innerHTML = `${words} &nbsp; ${spec.rows[row]}: <b>${number(spec.values[at][row])}</b>`;
      return;
    }
    for (let i = 0; i < spec.keys.length; i++) {
      // A series without a value at this step: the last one before it.
      let near = at;
      while (near > 0 && u.data[i + 1][near] == null) near--;
      const value = u.data[i + 1][near], older = near !== at && value != null ? ` (at ${number(u.data[0][near])})` : "";
      words += ` &nbsp; <span style="color:var(--c${spec.colours[i] % 7})">${spec.keys[i]} <b>${number(value)}</b>${older}</span>`;
    }
    read.innerHTML = words;
  }

  function draw(figure, spec) {
    const place = figure.querySelector("div.plot"), read = figure.querySelector(".read");
    let isLog = spec.log, chart = null;
    const cloud = spec.kind === "points";
    const data = cloud ? [spec.across, [null, null]] : spec.kind === "heat" ? [spec.x, spec.x.map(() => null)] : uPlot.join(spec.series.map((s) => [s.x, s.y]));
    function make() {
      const range = chart ? [chart.scales.x.min, chart.scales.x.max] : null;
      if (chart) { charts.splice(charts.indexOf(chart), 1); chart.destroy(); }
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 },
        ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
      const heat = spec.kind === "heat", label = { labelSize: 18, labelFont: "12px system-ui, sans-serif" };
      const named = cloud && spec.names.length;
      chart = new uPlot({
        width: place.clientWidth, height: 230,
        cursor: { sync: cloud ? undefined : { key: "relay" }, drag: { x: true, y: false }, points: { show: !cloud } },
        scales: { x: { time: false, ...(cloud ? { distr: spec.logAcross ? 3 : 1, auto: false, range: (u, low, high) => low == null || low === high ? spec.across : [low, high] } : {}) },
          y: heat ? { range: [0, spec.rows.length] } : cloud ? { range: spec.up }
          : isLog ? { distr: 3 } : { range: (u, low, high) => fit(low, high) } },
        axes: [{ ...axis, ...label, size: 30, label: cloud ? spec.axes[0] : page.across, ...(named ? { splits: () => spec.names.map((_, i) => i) } : {}),
          values: (u, v) => v.map((x) => named ? spec.names[x] ?? "" : !cloud && x % 1 || spec.logAcross && !isRound(x) ? "" : short(x)) },
          { ...axis, ...(cloud ? { ...label, label: spec.axes[1] } : {}), size: widest, values: (u, v, axis, space, step) => v.map((x) => heat || x == null ? "" : isLog ? short(x) : tick(x, step)) }],
        series: [{}, ...(heat || cloud ? [{ show: false }] : spec.series.map((s, i) => ({
          stroke: colour(`--c${spec.colours[i] % 7}`), width: 1.7, spanGaps: true, dash: s.dash ? [6, 4] : undefined,
          points: { show: s.x.length < 40, size: 6, fill: colour(`--c${spec.colours[i] % 7}`) } })))],
        hooks: { draw: [(u) => { if (cloud) return drawPoints(u, spec); if (heat) drawCells(u, spec); drawMarks(u); }], setCursor: [(u) => tell(u, spec, read)] },
      }, data, place);
      charts.push(chart);
      if (range) chart.setScale("x", { min: range[0], max: range[1] });
      tell(chart, spec, read);
    }
    function fit(low, high) {
      if (low == null) return [0, 1];
      const margin = low === high ? Math.abs(low) / 20 || 1 : (high - low) * 0.06;
      return [low >= 0 && low < margin * 2 ? 0 : low - margin, high + margin];
    }
    make();
    const button = figure.querySelector("button.log");
    if (button) button.onclick = () => { isLog = !isLog; button.setAttribute("aria-pressed", isLog); make(); };
    const half = figure.querySelector("button.half");
    if (half) half.onclick = () => {
      const xs = data[0], first = xs[0], last = xs[xs.length - 1], zoomed = half.getAttribute("aria-pressed") === "true";
      half.setAttribute("aria-pressed", !zoomed);
      chart.setScale("x", { min: zoomed ? first : (first + last) / 2, max: last });
    };
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 230 })).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", make);
  }

  document.querySelectorAll("figure[data-chart]").forEach((figure) => draw(figure, page.charts[figure.dataset.chart]));
})();

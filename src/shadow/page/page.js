"use strict";
// Draws the charts of one pair at a time, and of all pairs where there are several. Plotly draws; this chooses what.
// Text from reports enters the document as text only, and Plotly through safe().
(() => {
  const shared = JSON.parse(document.getElementById("shared").textContent);
  const read = (id) => JSON.parse(document.getElementById(`data-${id}`).textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const PRINTED = 660; // pixels that a chart is wide on paper
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star", "hexagon", "pentagon", "triangle-down"];

  // ---- text -------------------------------------------------------------------------------------------------------

  const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  /** Text that Plotly shows as it is: it reads tags and entities in any text. */
  const safe = (text) => String(text).replace(/[&<>]/g, (char) => ENTITIES[char]);
  const clipped = (text, length) => {
    const chars = [...String(text)];
    return chars.length > length ? `${chars.slice(0, length - 1).join("")}…` : chars.join("");
  };
  const lines = (...parts) => parts.filter((part) => part !== null && part !== "").join("<br>");

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e7) return value.toLocaleString("en").replace("-", "−");
    if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("-", "−");
    return String(Number(value.toPrecision(size >= 1000 ? 4 : 3))).replace(/^-/, "−");
  }
  const percent = (value) => (value === null || value === undefined ? "–" : `${number(100 * value)} %`);
  const range = (pair) => (pair ? `${number(pair[0])} to ${number(pair[1])}` : null);

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function options(select, entries, chosen) {
    select.replaceChildren(
      ...entries.map((entry) =>
        entry.options
          ? element("optgroup", { label: entry.label }, ...entry.options.map(([value, text]) => element("option", { value }, text)))
          : element("option", { value: entry[0] }, entry[1]),
      ),
    );
    const values = [...select.options].map((option) => option.value);
    select.value = values.includes(String(chosen)) ? chosen : (values[0] ?? "");
  }

  // ---- look -------------------------------------------------------------------------------------------------------

  const probe = element("i", { hidden: "" });
  document.body.append(probe);
  const computed = new Map();
  /** A colour of the style sheet as it holds now, in the theme or on paper. */
  function colour(name) {
    if (!computed.has(name)) {
      probe.style.color = `var(--${name})`;
      computed.set(name, getComputedStyle(probe).color);
    }
    return computed.get(name);
  }
  const faded = (name, opacity) => colour(name).replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, `rgba($1, ${opacity})`);
  const sans = () => getComputedStyle(document.body).fontFamily;
  const ramp = (names) => names.map((name, index) => [index / (names.length - 1), colour(name)]);
  const sequential = () => ramp(["scale-0", "scale-1", "scale-2", "scale-3", "scale-4", "scale-5"]);
  const diverging = () => ramp(["below-2", "below-1", "zero", "above-1", "above-2"]);

  const HUES = { "attn.q": 0, "attn.k": 1, "attn.v": 2, "attn.o": 3, "mlp.gate": 4, "mlp.up": 5, "mlp.down": 6 };
  const hue = (module, index) => colour(`s${HUES[module.replace(/^(experts|shared)\./, "mlp.")] ?? 7 + (index % 3)}`);
  const ofComponent = { language: "s0", vision: "s5", projector: "s2", audio: "s6" };
  const componentHue = (name) => colour(ofComponent[name] ?? "s7");

  let printing = false;
  const width = (div) => (printing ? PRINTED : div.clientWidth || 800);

  const axis = (more = {}) => ({
    gridcolor: colour("rule"), linecolor: colour("strong"), zerolinecolor: colour("strong"), zerolinewidth: 1,
    ticks: "outside", ticklen: 4, tickcolor: colour("strong"), automargin: true, fixedrange: coarse, ...more,
    title: { text: more.title ?? "", standoff: 8, font: { size: 12, color: colour("soft") } },
  });

  function layout(div, height, more) {
    return {
      height, width: width(div), showlegend: false, hovermode: "closest", dragmode: coarse ? false : "zoom",
      margin: { l: 10, r: 12, t: 10, b: 10 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: sans(), size: 12, color: colour("soft") },
      hoverlabel: {
        bgcolor: colour("raised"), bordercolor: colour("strong"), align: "left",
        font: { family: sans(), size: 12.5, color: colour("text") },
      },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("text") } },
      ...more,
    };
  }

  // The buttons are named one by one: Plotly's own set has one that sends the chart to its maker's cloud.
  const config = { displaylogo: false, responsive: false, typesetMath: false, showTips: false, plotlyServerURL: "", modeBarButtons: [["toImage", "resetScale2d"]] };

  /** Draw or redraw; label is what a screen reader says of the chart. */
  function draw(div, traces, made, label) {
    div.setAttribute("aria-label", label);
    const name = div.dataset.chart;
    Plotly.react(div, traces, made, { ...config, toImageButtonOptions: { format: "svg", filename: `shadow-${name}` } });
  }

  const heading = (text, y, more = {}) => ({
    text, x: 0, y, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
    font: { size: 13, color: colour("text") }, ...more,
  });

  // ---- tables behind charts ---------------------------------------------------------------------------------------

  function fill(details, head, rows) {
    if (!details || !details.open) return;
    const cells = (row, name) => row.map((cell) => element(name, typeof cell === "number" || cell === null ? { class: "n" } : {},
      typeof cell === "number" || cell === null ? number(cell) : String(cell)));
    details.querySelector(".scroll").replaceChildren(
      element("table", {},
        element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
        element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row, "td"))))),
    );
  }

  // ---- metrics ----------------------------------------------------------------------------------------------------

  const title = (metric) => metric.replaceAll("_", " ");
  function metricOptions(names) {
    const [delta, spectral] = [true, false].map((of) => names.filter((name) => shared.metrics[name].delta === of));
    const entries = (some) => some.map((name) => [name, title(name)]);
    return [["Change", delta], ["Spectrum", spectral]].filter(([, some]) => some.length)
      .map(([label, some]) => ({ label, options: entries(some) }));
  }

  /** What `shadow explain` says of a metric. */
  function explain(node, metric, log) {
    const about = shared.metrics[metric];
    const facts = [about.range && `range ${about.range}`, about.unit && `unit ${about.unit}`, about.null && `null when: ${about.null}`, about.source].filter(Boolean).join("; ");
    node.replaceChildren(element("b", {}, title(metric)), `: ${about.text}. `, about.formula ? element("code", {}, about.formula) : "",
      facts ? ` (${facts}). ` : " ", about.pitfalls, log ? " Colours are on a logarithmic scale." : "");
  }

  /** The range of a colour axis: a single outlier must not flatten the rest, so the ends are quantiles where they are far apart. */
  function scale(values, metric) {
    const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
    if (!sorted.length) return { low: 0, high: 1, scale: sequential(), log: false };
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
    const log = sorted[0] > 0 && at(0.98) / at(0.02) > 100;
    let [low, high] = [sorted[0], sorted.at(-1)];
    const [near, far] = [at(0.02), at(0.98)];
    if (!log && sorted.length > 40 && far > near) {
      if (high - far > 1.5 * (far - near)) high = far;
      if (near - low > 1.5 * (far - near)) low = near;
    }
    if (shared.metrics[metric].signed && low < 0) {
      const most = Math.max(-low, high);
      return { low: -most, high: most, scale: diverging(), log };
    }
    if (metric === "concentration") low = Math.min(low, 0);
    if (high === low) high = low + (Math.abs(low) || 1) * 1e-3;
    return { low, high, scale: sequential(), log, cut: [low > sorted[0], high < sorted.at(-1)] };
  }

  function coloraxis(found, div) {
    const map = found.log ? Math.log10 : (value) => value;
    const [low, high] = [map(found.low), map(found.high)];
    const values = [0, 0.5, 1].map((share) => low + share * (high - low));
    const [under, over] = found.cut ?? [false, false];
    return {
      cmin: low, cmax: high, colorscale: found.scale,
      colorbar: {
        orientation: "h", thickness: 10, len: Math.min(300, 0.6 * width(div)), lenmode: "pixels", outlinewidth: 0, x: 0, xanchor: "left",
        yref: "container", y: 1, yanchor: "top", ypad: 4, xpad: 0, ticks: "", tickvals: values, tickfont: { size: 11.5 },
        ticktext: values.map((value, index) => `${index === 0 && under ? "≤ " : index === 2 && over ? "≥ " : ""}${number(found.log ? 10 ** value : Number(value.toPrecision(6)))}`),
      },
    };
  }

  /** 1, 2, 5 times powers of ten from below the least to above the largest value. */
  function logTicks(values) {
    const [first, last] = [Math.floor(Math.log10(Math.min(...values))), Math.ceil(Math.log10(Math.max(...values)))];
    return [...Array(last - first + 1).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** (first + power)));
  }

  const layerTicks = (count, room) => {
    const step = [1, 2, 4, 5, 10, 20, 25, 50].find((one) => (count / one) * 26 <= room) ?? 100;
    return [...Array(Math.ceil(count / step)).keys()].map((index) => index * step);
  };

  // ---- one pair ---------------------------------------------------------------------------------------------------

  class Pair {
    constructor(root) {
      this.root = root;
      this.data = read(root.dataset.pair);
      this.cells = this.data.group.map((group, index) => {
        const [component, module] = this.data.groups[group];
        return {
          index, group, component, module, layer: this.data.layer[index], state: this.data.state[index], reason: this.data.reason[index],
          matrices: this.data.matrices[index], tensor: this.data.tensor[index], rows: this.data.rows[index], cols: this.data.cols[index],
        };
      });
      this.components = [...new Set(this.cells.map((cell) => cell.component))];
      this.subject = "delta";
      this.parts = ["heat", "experts", "depth", "spectra", "concentration", "energy", "sides"];
      this.connect();
    }

    control(name) { return this.root.querySelector(`[data-control="${name}"]`); }
    chart(name) { return this.root.querySelector(`[data-chart="${name}"]`); }
    behind(name) { return this.root.querySelector(`[data-table="${name}"]`); }
    value(cell, metric, subject = this.subject) { return this.data.values[subject]?.[metric]?.[cell.index] ?? null; }
    where(cell) { return `${this.components.length > 1 ? `${cell.component} · ` : ""}${cell.layer === null ? "" : `layer ${cell.layer} · `}${cell.module}`; }
    modulesOf(component) { return [...new Set(this.cells.filter((cell) => cell.component === component).map((cell) => cell.module))]; }

    connect() {
      const redraw = (...names) => () => names.forEach((name) => this[name]());
      const on = (name, ...names) => this.control(name)?.addEventListener("change", redraw(...names));
      for (const radio of this.root.querySelectorAll('[data-control="subject"]')) {
        radio.disabled = !Object.keys(this.data.values[radio.value] ?? {}).length;
        radio.addEventListener("change", () => { this.subject = radio.value; this.fillMetrics(); this.heat(); });
      }
      const usable = [...this.root.querySelectorAll('[data-control="subject"]')].filter((radio) => !radio.disabled);
      if (usable.length && !usable.some((radio) => radio.checked)) usable[0].checked = true;
      this.subject = usable.find((radio) => radio.checked)?.value ?? "delta";
      this.fillMetrics();
      on("metric", "heat");
      on("expert-module", "experts"); on("expert-metric", "experts");
      on("depth-metric", "depth"); on("depth-module", "depth");
      this.control("depth-component").addEventListener("change", () => { this.fillDepthModules(); this.depth(); });
      this.control("spectrum-component").addEventListener("change", () => { this.fillSpectrum(0); this.spectra(); });
      this.control("spectrum-layer").addEventListener("change", () => { this.fillSpectrum(1); this.spectra(); });
      on("spectrum-module", "spectra"); on("sides-metric", "sides");
      for (const details of this.root.querySelectorAll("details.behind")) {
        details.addEventListener("toggle", () => details.open && this[details.dataset.table]());
      }
      this.fillDepth(); this.fillExperts(); this.fillSpectrum(-1); this.fillSides();
    }

    draw() { for (const part of this.parts) this[part](); }
    resize() { for (const part of this.parts) this[part](); }
    erase() { for (const part of this.parts) if (this.chart(part)) Plotly.purge(this.chart(part)); }

    // -- heat map

    fillMetrics() {
      const select = this.control("metric");
      const names = Object.keys(this.data.values[this.subject] ?? {});
      options(select, metricOptions(names), select.value || "concentration");
    }

    /** What the cell says when pointed at: value, null, interval, and where the matrix is. */
    hover(cell, metric) {
      const about = shared.metrics[metric];
      const value = this.value(cell, metric);
      const head = `<b>${safe(this.where(cell))}</b>`;
      if (cell.state === "identical") return lines(head, "identical in base and tuned: nothing changed");
      if (cell.state === "skipped") return lines(head, `not measured: ${safe(cell.reason)}`);
      if (value === null && this.subject !== "tuned" && cell.state === "alone") return lines(head, "has no base, so there is no delta");
      const told = value === null ? `${title(metric)}: null${about.null ? `, ${safe(about.null)}` : ""}` : `${title(metric)} <b>${number(value)}</b>`;
      const ranges = this.subject === "delta" ? this.data.ranges[metric] : undefined;
      const spread = ranges && ranges.low[cell.index] !== null ? `${number(ranges.low[cell.index])} to ${number(ranges.high[cell.index])}` : null;
      let without = null;
      if (this.subject === "delta" && about.under_null !== null) {
        const expected = typeof about.under_null === "string" ? this.value(cell, about.under_null) : about.under_null;
        const bound = metric === "spectral_norm" ? "null edge" : "under the null";
        if (expected !== null) without = `${bound} ${number(expected)}`;
      }
      const module = this.data.modules[this.subject]?.[metric]?.[cell.group];
      const interval = !module ? null : `median of ${safe(cell.module)} ${number(module[0])}${module[1]
        ? ` (${range(module[1])}, ${number(100 * module[3])} % interval over ${module[2]} layers)` : ", no interval"}`;
      const several = cell.matrices > 1 ? `median of ${cell.matrices} matrices${spread ? `, ${spread}` : ""}` : null;
      const shape = cell.rows === null ? null : `${cell.rows} × ${cell.cols}${cell.matrices === 1 && cell.tensor ? `, ${safe(clipped(cell.tensor, 60))}` : ""}`;
      return lines(head, told, several, without, interval, shape);
    }

    heat() {
      const div = this.chart("heat");
      const metric = this.control("metric").value;
      const text = this.root.querySelector('[data-text="metric"]');
      const drawn = this.cells;
      if (!metric || !drawn.length) { text.textContent = "There is nothing to draw: no matrix changed."; div.hidden = true; return; }
      div.hidden = false;
      const found = scale(drawn.map((cell) => this.value(cell, metric)), metric);
      explain(text, metric, found.log);
      const map = (value) => (value === null ? null : found.log ? Math.log10(value) : value);
      const panels = this.components.map((component) => ({ component, cells: drawn.filter((cell) => cell.component === component) }))
        .filter((panel) => panel.cells.length);
      const ROW = 23, GAP = panels.length > 1 ? 52 : 0, TOP = panels.length > 1 ? 66 : 42, BOTTOM = 44;
      let height = 0;
      for (const panel of panels) {
        panel.modules = [...new Set(panel.cells.map((cell) => cell.module))];
        panel.top = height;
        height += panel.modules.length * ROW + GAP;
      }
      height -= GAP;
      const most = Math.max(...drawn.map((cell) => cell.layer ?? 0)) + 1, outside = drawn.some((cell) => cell.layer === null);
      const room = (width(div) - 130) / (most + 2); // pixels of a cell, about
      const traces = [], annotations = [];
      const made = layout(div, height + TOP + BOTTOM, { margin: { l: 10, r: 12, t: TOP, b: BOTTOM } });
      panels.forEach((panel, index) => {
        const suffix = index ? index + 1 : "";
        const layers = Math.max(-1, ...panel.cells.map((cell) => cell.layer ?? -1)) + 1;
        const alone = panel.cells.some((cell) => cell.layer === null);
        const grid = (count) => panel.modules.map(() => Array(count).fill(null));
        const blocks = { z: grid(layers), text: grid(layers) }, out = { z: grid(1), text: grid(1) };
        const marks = { identical: [], null: [], skipped: [] };
        for (const cell of panel.cells) {
          const y = panel.modules.indexOf(cell.module);
          const [target, x] = cell.layer === null ? [out, 0] : [blocks, cell.layer];
          const value = this.value(cell, metric);
          target.z[y][x] = map(value);
          target.text[y][x] = this.hover(cell, metric);
          if (value === null) marks[cell.state in marks ? cell.state : "null"].push([cell.layer === null ? -1.5 : x, y]);
        }
        const common = {
          type: "heatmap", coloraxis: "coloraxis", y0: 0, dy: 1, dx: 1, xgap: 1, ygap: 1, hoverinfo: "text", hoverongaps: true,
          xaxis: `x${suffix}`, yaxis: `y${suffix}`,
        };
        if (layers) traces.push({ ...common, x0: 0, z: blocks.z, text: blocks.text });
        if (alone) traces.push({ ...common, x0: -1.5, z: out.z, text: out.text });
        for (const [state, symbol, size] of [["identical", "circle", 3], ["null", "x-thin", 5], ["skipped", "line-ne", 6]]) {
          if (!marks[state].length) continue;
          traces.push({
            type: "scatter", mode: "markers", hoverinfo: "skip", x: marks[state].map(([x]) => x), y: marks[state].map(([, y]) => y),
            marker: { symbol, size, color: colour("soft"), line: { color: colour("soft"), width: state === "identical" ? 0 : 1 } },
            xaxis: `x${suffix}`, yaxis: `y${suffix}`, cliponaxis: false,
          });
        }
        const rows = panel.modules.length;
        const [high, low] = [1 - panel.top / height, 1 - (panel.top + rows * ROW) / height];
        const ticks = layerTicks(layers, layers * room).filter((layer) => !alone || layer || room > 22);
        made[`yaxis${suffix}`] = axis({
          domain: [Math.max(0, low), high], range: [rows - 0.5, -0.5], tickvals: panel.modules.map((_, row) => row), showgrid: false, zeroline: false,
          ticktext: panel.modules.map((module) => safe(clipped(module, 18))), ticks: "", showline: false, anchor: `x${suffix}`, fixedrange: true,
          tickfont: { color: colour("text") },
        });
        made[`xaxis${suffix}`] = axis({
          range: [outside ? -2.05 : -0.55, most - 0.45], tickvals: [...(alone ? [-1.5] : []), ...ticks], showgrid: false, zeroline: false, tickangle: 0,
          ticktext: [...(alone ? ["out"] : []), ...ticks.map(String)], anchor: `y${suffix}`, showline: false, fixedrange: true, ticklen: 3,
        });
        if (index === panels.length - 1) annotations.push(heading(`layer${outside ? " (out: outside the layers)" : ""}`, 0, { x: 0.5, xanchor: "center", yanchor: "top", yshift: -22, font: { size: 12, color: colour("soft") } }));
        if (panels.length > 1) annotations.push(heading(safe(panel.component), high, { yshift: 3 }));
      });
      made.annotations = annotations;
      made.coloraxis = coloraxis(found, div);
      const known = drawn.filter((cell) => this.value(cell, metric) !== null).sort((a, b) => this.value(a, metric) - this.value(b, metric));
      const ends = known.length ? `, from ${number(this.value(known[0], metric))} (${this.where(known[0])}) to ${number(this.value(known.at(-1), metric))} (${this.where(known.at(-1))})` : "";
      draw(div, traces, made, `Heat map of the ${title(metric)} of ${this.subject} by layer and module, ${drawn.length} cells${ends}`);
      if (!div.clicks) {
        div.clicks = true;
        div.on("plotly_click", ({ points }) => this.open(points[0]));
      }
      div.panels = panels;
      fill(this.behind("heat"), ["component", "layer", "module", title(metric), "matrices", "state"], drawn.map((cell) =>
        [cell.component, cell.layer, cell.module, this.value(cell, metric), cell.matrices, cell.reason ? `${cell.state}: ${cell.reason}` : cell.state]));
    }

    /** Show the spectrum of the cell of a heat map that was clicked. */
    open(point) {
      const index = Number(point.yaxis._name.replace("yaxis", "") || 1) - 1;
      const panel = this.chart("heat").panels[index];
      const cell = panel?.cells.find((one) => one.module === panel.modules[point.y] && (one.layer ?? -1.5) === point.x);
      if (cell && this.data.spectra.curves[cell.index]) {
        this.fillSpectrum(-1, cell);
        this.spectra();
        this.root.querySelector(`#spectra-${this.root.dataset.pair}`).scrollIntoView({ block: "start" });
      }
    }

    // -- experts

    fillExperts() {
      const experts = this.data.experts;
      const part = this.root.querySelector('[data-part="experts"]');
      part.hidden = !experts.cell;
      if (!experts.cell) return;
      const groups = [...new Set(experts.cell.map((cell) => this.data.group[cell]))];
      options(this.control("expert-module"), groups.map((group) => [group, this.data.groups[group].slice(this.components.length > 1 ? 0 : 1).join(" ")]));
      options(this.control("expert-metric"), Object.keys(experts.values).map((name) => [name, title(name)]), "concentration");
    }

    experts() {
      const experts = this.data.experts;
      if (!experts.cell) return;
      const div = this.chart("experts");
      const group = Number(this.control("expert-module").value), metric = this.control("expert-metric").value;
      const places = experts.cell.map((cell, index) => ({ cell, expert: experts.expert[index], value: experts.values[metric][index] }))
        .filter((place) => this.data.group[place.cell] === group && this.data.layer[place.cell] !== null);
      const layers = Math.max(0, ...places.map((place) => this.data.layer[place.cell])) + 1;
      const count = Math.max(0, ...places.map((place) => place.expert)) + 1;
      const found = scale(places.map((place) => place.value), metric);
      const z = Array.from({ length: count }, () => Array(layers).fill(null));
      for (const place of places) z[place.expert][this.data.layer[place.cell]] = found.log && place.value !== null ? Math.log10(place.value) : place.value;
      const text = z.map((row, expert) => row.map((value, layer) => (value === null ? "" : lines(`<b>layer ${layer} · expert ${expert}</b>`,
        `${title(metric)} <b>${number(found.log ? 10 ** value : value)}</b>`))));
      const ticks = layerTicks(layers, width(div) - 80);
      draw(div, [{ type: "heatmap", z, text, hoverinfo: "text", hoverongaps: false, coloraxis: "coloraxis", x0: 0, dx: 1, y0: 0, dy: 1 }],
        layout(div, 130 + Math.min(420, Math.max(120, count * 4)), {
          margin: { l: 10, r: 12, t: 42, b: 44 }, coloraxis: coloraxis(found, div),
          xaxis: axis({ tickvals: ticks, ticktext: ticks.map(String), showgrid: false, zeroline: false, title: "layer", fixedrange: true }),
          yaxis: axis({ autorange: "reversed", showgrid: false, zeroline: false, title: "expert", fixedrange: true }),
        }), `Heat map of the ${title(metric)} of ${places.length} experts by layer and expert`);
      fill(this.behind("experts"), ["layer", "expert", title(metric)], places.map((place) => [this.data.layer[place.cell], place.expert, place.value]));
    }

    // -- depth

    inLayers(component) { return this.cells.filter((cell) => cell.component === component && cell.layer !== null); }

    fillDepth() {
      const able = this.components.filter((component) => this.inLayers(component).some((cell) => cell.state === "measured" || cell.state === "alone"));
      options(this.control("depth-component"), able.map((name) => [name, name]), "language");
      this.root.querySelector('[data-part="depth-component"]').hidden = able.length < 2;
      const names = ["base", "tuned", "delta"].flatMap((subject) => Object.keys(this.data.values[subject] ?? {}));
      const spectral = [...new Set(names)].filter((name) => !shared.metrics[name].delta);
      options(this.control("depth-metric"), spectral.map((name) => [name, title(name)]), "effective_rank");
      this.fillDepthModules();
    }

    fillDepthModules() {
      const cells = this.inLayers(this.control("depth-component").value).filter((cell) => cell.state === "measured" || cell.state === "alone");
      options(this.control("depth-module"), [["", "all"], ...new Set(cells.map((cell) => cell.module))].map((one) => (Array.isArray(one) ? one : [one, one])));
    }

    depth() {
      const div = this.chart("depth");
      const component = this.control("depth-component").value, metric = this.control("depth-metric").value;
      const only = this.control("depth-module").value;
      const cells = this.inLayers(component).filter((cell) => (cell.state === "measured" || cell.state === "alone") && (!only || cell.module === only));
      if (!cells.length || !metric) { div.hidden = true; return; }
      div.hidden = false;
      const modules = this.modulesOf(component).filter((module) => cells.some((cell) => cell.module === module));
      const shift = (cell) => this.data.shift[metric]?.[cell.index] ?? null;
      const panels = [
        ["Shift: tuned − base", [["shift", shift, "solid"]]],
        ["Delta", [["delta", (cell) => this.value(cell, metric, "delta"), "solid"]]],
        ["Base (dotted) and tuned (solid)", [["base", (cell) => this.value(cell, metric, "base"), "dot"], ["tuned", (cell) => this.value(cell, metric, "tuned"), "solid"]]],
      ].filter(([, series]) => series.some(([, get]) => cells.some((cell) => get(cell) !== null)));
      const traces = [], annotations = [], PANEL = 190, GAP = 44, BOTTOM = 44;
      const legend = 24 * Math.ceil((modules.length * 92) / width(div)), TOP = 34 + legend;
      const height = panels.length * (PANEL + GAP) - GAP;
      const made = layout(div, height + TOP + BOTTOM, { margin: { l: 10, r: 12, t: TOP, b: BOTTOM }, showlegend: modules.length > 1 });
      panels.forEach(([text, series], index) => {
        const suffix = index ? index + 1 : "";
        const high = 1 - (index * (PANEL + GAP)) / height, low = high - PANEL / height;
        modules.forEach((module, place) => {
          const own = cells.filter((cell) => cell.module === module).sort((a, b) => a.layer - b.layer);
          for (const [name, get, dash] of series) {
            traces.push({
              type: "scatter", mode: own.length > 1 ? "lines+markers" : "markers", x: own.map((cell) => cell.layer), y: own.map(get), name: safe(module), legendgroup: module,
              showlegend: index === 0 && name !== "base", connectgaps: false, xaxis: "x", yaxis: `y${suffix}`, hoverinfo: "text", cliponaxis: false,
              line: { color: hue(module, place), width: name === "base" ? 1.3 : 1.7, dash },
              marker: { symbol: SYMBOLS[place % SYMBOLS.length], size: name === "base" ? 0.1 : 5, color: hue(module, place) },
              hovertext: own.map((cell) => lines(`<b>layer ${cell.layer} · ${safe(module)}</b>`, `${title(metric)}, ${name} <b>${number(get(cell))}</b>`,
                cell.matrices > 1 ? `median of ${cell.matrices} matrices` : null)),
            });
          }
        });
        made[`yaxis${suffix}`] = axis({ domain: [Math.max(0, low), high], zeroline: text.startsWith("Shift"), anchor: "x", nticks: 5 });
        annotations.push(heading(text, high, { yshift: 4 }));
      });
      made.legend = { ...made.legend, y: 1 + 26 / height };
      made.xaxis = axis({ title: "layer", anchor: `y${panels.length > 1 ? panels.length : ""}`, zeroline: false, tickvals: layerTicks(Math.max(...cells.map((cell) => cell.layer)) + 1, width(div) - 60) });
      made.annotations = annotations;
      draw(div, traces, made, `Depth profiles of the ${title(metric)} of ${component}: ${panels.map(([text]) => text).join("; ")}, for ${modules.length} modules`);
      fill(this.behind("depth"), ["layer", "module", "base", "tuned", "shift", "delta"], cells.map((cell) =>
        [cell.layer, cell.module, this.value(cell, metric, "base"), this.value(cell, metric, "tuned"), shift(cell), this.value(cell, metric, "delta")]));
    }

    // -- spectra

    /** Offer what has a curve. fixed: how many of component and layer stay as the reader chose them. */
    fillSpectrum(fixed, cell) {
      const [component, layer, module] = ["component", "layer", "module"].map((name) => this.control(`spectrum-${name}`));
      const able = this.cells.filter((one) => this.data.spectra.curves[one.index]);
      const first = cell ?? able.find((one) => one.layer !== null && one.state === "measured") ?? able.find((one) => one.state === "measured") ?? able[0];
      if (!first) return;
      if (fixed < 0) options(component, [...new Set(able.map((one) => one.component))].map((name) => [name, name]), first.component);
      this.root.querySelector('[data-part="spectrum-component"]').hidden = component.options.length < 2;
      const own = able.filter((one) => one.component === component.value);
      const layers = [...new Set(own.map((one) => one.layer))].sort((a, b) => (a ?? -1) - (b ?? -1));
      if (fixed < 1) options(layer, layers.map((number) => [number ?? "out", number ?? "outside"]), cell ? (cell.layer ?? "out") : fixed < 0 ? (first.layer ?? "out") : layer.value);
      const there = own.filter((one) => String(one.layer ?? "out") === layer.value);
      options(module, there.map((one) => [one.index, one.module]), cell ? cell.index : there.find((one) => one.module === module.selectedOptions[0]?.textContent)?.index);
    }

    spectra() {
      const div = this.chart("spectra"), text = this.root.querySelector('[data-text="spectra"]');
      const cell = this.cells[this.control("spectrum-module").value];
      const curve = cell && this.data.spectra.curves[cell.index];
      div.hidden = !curve;
      if (!curve) { text.textContent = "This report has no spectra: it was made with --no-spectra, or nothing was measured."; return; }
      const ranks = this.data.spectra.ranks[curve.size];
      const edge = this.value(cell, "null_edge", "delta");
      const spikes = this.value(cell, "spikes", "delta"), energy = this.value(cell, "spike_energy", "delta");
      const traces = [];
      const several = curve.matrices > 1;
      const LOOK = { base: ["base", 1.4, "dot"], tuned: ["tuned", 1.4, "solid"], delta: ["delta", 2, "solid"] };
      if (curve.low) {
        traces.push({ type: "scatter", mode: "lines", x: ranks, y: curve.low, line: { width: 0 }, hoverinfo: "skip", showlegend: false });
        traces.push({ type: "scatter", mode: "lines", x: ranks, y: curve.high, line: { width: 0 }, fill: "tonexty", fillcolor: faded("delta", 0.2), hoverinfo: "skip", name: "delta, middle 80 %" });
      }
      for (const [subject, [name, thick, dash]] of Object.entries(LOOK)) {
        if (!curve[subject]) continue;
        traces.push({
          type: "scatter", mode: "lines", x: ranks, y: curve[subject], name, line: { color: colour(name), width: thick, dash }, hoverinfo: "text",
          hovertext: ranks.map((rank, index) => lines(`<b>${name}</b>${several ? ", median" : ""}`, `σ<sub>${rank}</sub> = ${number(curve[subject][index])}`)),
        });
      }
      if (edge !== null) {
        traces.push({
          type: "scatter", mode: "lines", x: [1, curve.size], y: [edge, edge], name: several ? "null edge, median" : "null edge", line: { color: colour("text"), width: 1.2, dash: "dash" },
          hoverinfo: "text", hovertext: Array(2).fill(`null edge ${number(edge)}`),
        });
      }
      if (curve.spikes?.length) {
        traces.push({
          type: "scatter", mode: "markers", x: curve.spikes.map((_, index) => index + 1), y: curve.spikes, name: `spikes (${spikes})`,
          marker: { color: colour("delta"), size: 9, symbol: "circle-open", line: { width: 2 } }, hoverinfo: "text",
          hovertext: curve.spikes.map((value, index) => lines(`<b>spike ${index + 1}</b>`, `σ<sub>${index + 1}</sub> = ${number(value)}, ${number(value / edge)} × the null edge`)),
        });
      }
      const range = this.data.ranges.spikes;
      const found = several
        ? `${curve.matrices} matrices, medians; ${number(spikes)} spikes in the median${range ? `, ${number(range.low[cell.index])} to ${number(range.high[cell.index])}` : ""}`
        : spikes === null ? "no delta" : spikes === 0 ? "no singular value of the delta lies above the null edge"
          : `${number(spikes)} singular value${spikes === 1 ? "" : "s"} of the delta above the null edge, with ${percent(energy)} of its energy${curve.spikes && curve.spikes.length < spikes ? ` (the first ${curve.spikes.length} are marked)` : ""}`;
      text.replaceChildren(element("b", {}, this.where(cell)), `, ${cell.rows} × ${cell.cols}: ${found}.`);
      const exponents = { exponentformat: "power", dtick: 1, tickfont: { size: 9.6 } }; // Plotly draws whole powers a quarter larger
      draw(div, traces, layout(div, Math.min(460, Math.max(340, width(div) * 0.5)), {
        showlegend: true, margin: { l: 10, r: 12, t: width(div) < 520 ? 70 : 44, b: 44 },
        xaxis: axis({ type: "log", title: "rank of the singular value", range: [-0.04, Math.log10(curve.size) + 0.03], ...exponents, zeroline: false }),
        yaxis: axis({ type: "log", title: "singular value", ...exponents, zeroline: false }),
      }), `Spectra of ${this.where(cell)} on logarithmic axes; ${found}`);
      fill(this.behind("spectra"), ["rank", "base", "tuned", "delta", "above the null edge"], ranks.map((rank, index) =>
        [rank, curve.base?.[index] ?? null, curve.tuned?.[index] ?? null, curve.delta?.[index] ?? null,
          several || !curve.delta || edge === null ? "–" : curve.delta[index] > edge ? "yes" : "no"]));
    }

    // -- concentration

    concentration() {
      const div = this.chart("concentration");
      const cells = this.cells.filter((cell) => cell.state === "measured");
      const single = this.data.experts.values?.concentration;
      const rows = [];
      for (const reference of this.data.references) {
        rows.push({ name: reference.name, reference: true, values: reference.values, texts: reference.values.map(() => safe(reference.name)) });
      }
      for (const [group, [component, module]] of this.data.groups.entries()) {
        const own = cells.filter((cell) => cell.group === group);
        if (!own.length) continue;
        const row = { name: this.components.length > 1 ? `${component} ${module}` : module, component, values: [], texts: [] };
        const alone = single ? new Set(this.data.experts.cell) : new Set();
        for (const cell of own.filter((one) => !alone.has(one.index))) {
          row.values.push(this.value(cell, "concentration", "delta"));
          row.texts.push(safe(this.where(cell)));
        }
        if (single) {
          this.data.experts.cell.forEach((cell, index) => {
            if (this.data.group[cell] !== group) return;
            row.values.push(single[index]);
            row.texts.push(`${safe(this.where(this.cells[cell]))} · expert ${this.data.experts.expert[index]}`);
          });
        }
        if (row.values.some((value) => value !== null)) rows.push(row);
      }
      div.hidden = !rows.length;
      if (!rows.length) return;
      const traces = rows.map((row, place) => {
        const kept = row.values.map((value, index) => [value, row.texts[index]]).filter(([value]) => value !== null);
        const tint = row.reference ? colour("s7") : componentHue(row.component);
        return {
          type: "box", orientation: "h", x: kept.map(([value]) => value), y0: place, name: safe(row.name), boxpoints: kept.length > 600 ? "outliers" : "all",
          jitter: 0.6, pointpos: 0, fillcolor: "rgba(0,0,0,0)", line: { color: tint, width: kept.length > 2 ? 1.2 : 0 }, width: 0.62, hoveron: "points", hoverinfo: "text",
          marker: { color: tint, size: kept.length > 100 ? 3 : 4.5, opacity: 0.55 }, text: kept.map(([value, text]) => lines(`<b>${text}</b>`, `concentration ${number(value)}`)),
        };
      });
      const { concentration, interval } = this.data.overall;
      const shapes = [
        { type: "rect", xref: "x", yref: "paper", x0: -shared.margin, x1: shared.margin, y0: 0, y1: 1, line: { width: 0 }, fillcolor: faded("soft", 0.13), layer: "below" },
        { type: "line", xref: "x", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: colour("text"), width: 1.4 } },
      ];
      const annotations = [heading("null", 1, { x: 0, xref: "x", xanchor: "center", yshift: 2, font: { size: 12, color: colour("text") } })];
      if (concentration !== null) {
        shapes.push({ type: "line", xref: "x", yref: "paper", x0: concentration, x1: concentration, y0: 0, y1: 1, line: { color: colour("delta"), width: 1.2, dash: "dash" } });
        if (interval) shapes.push({ type: "rect", xref: "x", yref: "paper", x0: interval[0], x1: interval[1], y0: 0, y1: 1, line: { width: 0 }, fillcolor: faded("delta", 0.1), layer: "below" });
        const near = Math.abs(concentration) < 0.12;
        annotations.push(heading(`median ${number(concentration)}`, 1, { x: concentration, xref: "x", xanchor: near ? "left" : "center", xshift: near ? 20 : 0, yshift: 2, font: { size: 12, color: colour("delta") } }));
      }
      const all = rows.flatMap((row) => row.values.filter((value) => value !== null));
      draw(div, traces, layout(div, rows.length * 30 + 86, {
        shapes, annotations, margin: { l: 10, r: 16, t: 30, b: 44 },
        xaxis: axis({ title: "concentration", zeroline: false, range: [Math.min(-0.08, Math.min(...all) - 0.04), Math.max(0.25, Math.max(...all) + 0.04)] }),
        yaxis: axis({ tickvals: rows.map((_, place) => place), ticktext: rows.map((row) => safe(clipped(row.name, 24))), range: [rows.length - 0.4, -0.6], showgrid: false, zeroline: false,
          ticks: "", fixedrange: true, tickfont: { color: colour("text") } }),
      }), `Concentration of ${all.length} matrices by module, against a null of 0; the median is ${number(concentration)}`);
      fill(this.behind("concentration"), ["module", "matrices", "least", "median", "largest"], rows.map((row) => {
        const sorted = row.values.filter((value) => value !== null).sort((a, b) => a - b), half = sorted.length / 2;
        return [row.name, sorted.length, sorted[0], (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2, sorted.at(-1)];
      }));
    }

    // -- energy

    energy() {
      const div = this.chart("energy");
      const modules = this.data.modules_table;
      div.hidden = !modules.length;
      if (!modules.length) return;
      const total = modules.reduce((sum, row) => sum + row.parameters, 0);
      const several = this.data.components.length > 1;
      const bars = (rows, name) => rows.map((row) => ({ ...row, name: name(row) }));
      const changed = (component) => modules.filter((row) => row.component === component).reduce((sum, row) => sum + row.parameters, 0);
      const components = bars(this.data.components.filter((row) => row.energy_share !== null).map((row) => ({ ...row, parameters: changed(row.component) })), (row) => row.component);
      const groups = [
        ...(several && components.length ? [["By component", components]] : []),
        ["By module", bars(modules, (row) => (several ? `${row.component} ${row.module}` : row.module))],
      ];
      const ROW = 24, GAP = 78, DEPTH = 170, TOP = 26, BOTTOM = 44;
      const depths = [...new Set(this.data.depth.map((row) => row.component))].filter((name) => this.data.depth.some((row) => row.component === name && row.energy_share !== null));
      let height = groups.reduce((sum, [, rows]) => sum + rows.length * ROW + GAP, 0) + (depths.length ? DEPTH : -GAP), top = 0;
      const traces = [], annotations = [];
      const made = layout(div, height + TOP + BOTTOM, { margin: { l: 10, r: 16, t: TOP, b: BOTTOM }, bargap: 0.3, barmode: "overlay" });
      groups.forEach(([text, rows], index) => {
        const suffix = index ? index + 1 : "";
        const high = 1 - top / height, low = 1 - (top + rows.length * ROW) / height;
        top += rows.length * ROW + GAP;
        const y = rows.map((_, row) => row);
        const shares = rows.map((row) => 100 * row.energy_share);
        const bounds = rows.map((row) => row.intervals?.energy_share ?? null);
        const told = (row, bound) => lines(`<b>${safe(row.name)}</b>`, `${percent(row.energy_share)} of the energy${bound ? ` (${percent(bound[0])} to ${percent(bound[1])})` : ""}`,
          `${percent(row.parameters / total)} of the changed parameters`);
        traces.push({
          type: "bar", orientation: "h", x: shares, y, xaxis: `x${suffix}`, yaxis: `y${suffix}`, marker: { color: rows.map((row) => componentHue(row.component)), opacity: 0.85 },
          hoverinfo: "text", hovertext: rows.map((row, place) => told(row, bounds[place])), textposition: "none",
          error_x: { type: "data", symmetric: false, array: bounds.map((bound, place) => (bound ? 100 * bound[1] - shares[place] : 0)), color: colour("text"), thickness: 1, width: 3,
            arrayminus: bounds.map((bound, place) => (bound ? shares[place] - 100 * bound[0] : 0)) },
        });
        traces.push({
          type: "scatter", mode: "markers", x: rows.map((row) => (100 * row.parameters) / total), y, xaxis: `x${suffix}`, yaxis: `y${suffix}`, hoverinfo: "text",
          hovertext: rows.map((row, place) => told(row, bounds[place])), marker: { symbol: "line-ns", size: 15, line: { color: colour("text"), width: 2 } },
        });
        made[`yaxis${suffix}`] = axis({ domain: [Math.max(0, low), high], range: [rows.length - 0.5, -0.5], tickvals: y, ticktext: rows.map((row) => safe(clipped(row.name, 24))), showgrid: false,
          zeroline: false, ticks: "", anchor: `x${suffix}`, fixedrange: true, tickfont: { color: colour("text") } });
        made[`xaxis${suffix}`] = axis({ anchor: `y${suffix}`, rangemode: "tozero", ticksuffix: " %", nticks: 6, title: index === groups.length - 1 ? "share of the update's energy" : "" });
        annotations.push(heading(text, high, { yshift: 4 }));
      });
      if (depths.length) {
        const suffix = groups.length + 1;
        depths.forEach((component) => {
          const own = this.data.depth.filter((row) => row.component === component && row.energy_share !== null);
          traces.push({
            type: "scatter", mode: "lines+markers", line: { shape: "hvh", width: 1.6, color: componentHue(component) }, marker: { size: 4, color: componentHue(component) }, x: own.map((row) => row.layer),
            y: own.map((row) => 100 * row.energy_share), xaxis: `x${suffix}`, yaxis: `y${suffix}`, name: safe(component), hoverinfo: "text",
            hovertext: own.map((row) => lines(`<b>${several ? `${safe(component)} · ` : ""}layer ${row.layer}</b>`, `${percent(row.energy_share)} of the energy of its layers`)),
          });
        });
        const high = 1 - top / height;
        made[`yaxis${suffix}`] = axis({ domain: [0, high], rangemode: "tozero", ticksuffix: " %", anchor: `x${suffix}`, nticks: 5 });
        made[`xaxis${suffix}`] = axis({ anchor: `y${suffix}`, title: "layer", zeroline: false, tickvals: layerTicks(Math.max(...this.data.depth.map((row) => row.layer)) + 1, width(div) - 60) });
        annotations.push(heading(several ? `By layer of ${depths.map((name) => `<span style="color:${componentHue(name)}">${safe(name)}</span>`).join(", ")}` : "By layer", high, { yshift: 4 }));
      }
      made.annotations = annotations;
      draw(div, traces, made, `Share of the update's energy by ${several ? "component, " : ""}module and layer`);
      fill(this.behind("energy"), ["what", "share of the energy", "from", "to", "share of the changed parameters"], [
        ...groups.flatMap(([, rows]) => rows.map((row) => [row.name, row.energy_share, row.intervals?.energy_share?.[0] ?? null, row.intervals?.energy_share?.[1] ?? null, row.parameters / total])),
        ...this.data.depth.filter((row) => row.energy_share !== null).map((row) => [`${several ? `${row.component} ` : ""}layer ${row.layer}`, row.energy_share, null, null, null])]);
    }

    // -- components side by side

    fillSides() {
      const select = this.control("sides-metric");
      if (!select) return;
      const names = ["concentration", "relative_norm", "energy_share", "spikes", "effective_rank_shift", "reading_participation_ratio", "writing_participation_ratio"];
      options(select, names.filter((name) => this.data.depth.some((row) => row[name] !== null)).map((name) => [name, title(name)]));
    }

    sides() {
      const div = this.chart("sides");
      if (!div) return;
      const metric = this.control("sides-metric").value;
      const components = [...new Set(this.data.depth.map((row) => row.component))];
      div.hidden = !metric;
      if (!metric) return;
      const traces = components.map((component, place) => {
        const own = this.data.depth.filter((row) => row.component === component);
        const last = Math.max(1, ...own.map((row) => row.layer));
        return {
          type: "scatter", mode: "lines+markers", name: safe(component), x: own.map((row) => row.layer / last), y: own.map((row) => row[metric]), line: { color: componentHue(component), width: 1.8, dash: DASHES[place % 4] },
          marker: { size: 5, color: componentHue(component), symbol: SYMBOLS[place % SYMBOLS.length] }, hoverinfo: "text",
          hovertext: own.map((row) => lines(`<b>${safe(component)} · layer ${row.layer}</b>`, `${title(metric)} ${number(row[metric])}`)),
        };
      });
      draw(div, traces, layout(div, 300, {
        showlegend: true, margin: { l: 10, r: 12, t: 34, b: 44 },
        xaxis: axis({ title: "relative depth", zeroline: false, range: [-0.03, 1.03] }), yaxis: axis({ title: title(metric), zeroline: true }),
      }), `${title(metric)} of ${components.join(", ")} by relative depth`);
      fill(this.behind("sides"), ["component", "layer", title(metric)], this.data.depth.map((row) => [row.component, row.layer, row[metric]]));
    }
  }

  // ---- several pairs ----------------------------------------------------------------------------------------------

  class Overview {
    constructor(root, open) {
      this.root = root;
      this.open = open;
      this.rows = shared.overview;
      const benchmarks = [...new Set(this.rows.flatMap((row) => row.gains.map((gain) => gain.name)))];
      const part = root.querySelector('[data-part="scores"]');
      part.hidden = !benchmarks.length;
      const select = root.querySelector('[data-control="benchmark"]');
      options(select, benchmarks.map((name) => [name, name]));
      select.addEventListener("change", () => this.scores());
    }

    chart(name) { return this.root.querySelector(`[data-chart="${name}"]`); }
    draw() { this.ranking(); this.scatter(); this.scores(); }
    resize() { this.draw(); }

    told(row) {
      return [`<b>${safe(row.name)}</b>`, `concentration ${number(row.concentration)}${row.interval ? ` (${range(row.interval)})` : ""}`,
        `relative norm ${percent(row.relative_norm)}`, row.failed.length ? `failed: ${safe(row.failed.join(", "))}` : null];
    }

    marker(rows, size) {
      return {
        size, color: rows.map((row) => (row.failed.length ? colour("page") : colour("tuned"))), opacity: 1,
        line: { width: 1.6, color: rows.map((row) => (row.failed.length ? colour("soft") : colour("tuned"))) },
      };
    }

    errors(rows, value, bounds) {
      return {
        type: "data", symmetric: false, color: colour("strong"), thickness: 1.4, width: 0,
        array: rows.map((row) => (row[bounds] ? row[bounds][1] - row[value] : 0)), arrayminus: rows.map((row) => (row[bounds] ? row[value] - row[bounds][0] : 0)),
      };
    }

    clickable(div, rows) {
      div.rows = rows;
      if (div.clicks) return;
      div.clicks = true;
      div.on("plotly_click", ({ points }) => { const row = div.rows[points[0].pointNumber]; if (row) this.open(row.pair, true); });
    }

    ranking() {
      const div = this.chart("ranking");
      const rows = this.rows.filter((row) => row.concentration !== null);
      div.hidden = !rows.length;
      if (!rows.length) return;
      const room = Math.max(14, Math.min(46, Math.floor(width(div) / 18)));
      draw(div, [{
        type: "scatter", mode: "markers", x: rows.map((row) => row.concentration), y: rows.map((_, place) => place), marker: this.marker(rows, 9),
        error_x: this.errors(rows, "concentration", "interval"), hoverinfo: "text", hovertext: rows.map((row) => lines(...this.told(row))), cliponaxis: false,
      }], layout(div, rows.length * 22 + 66, {
        shapes: [{ type: "rect", xref: "x", yref: "paper", x0: -shared.margin, x1: shared.margin, y0: 0, y1: 1, line: { width: 0 }, fillcolor: faded("soft", 0.13), layer: "below" }],
        xaxis: axis({ title: "concentration", zeroline: true }),
        yaxis: axis({ range: [rows.length - 0.4, -0.6], tickvals: rows.map((_, place) => place), ticktext: rows.map((row) => safe(clipped(row.name, room))), zeroline: false, ticks: "", fixedrange: true,
          tickfont: { color: colour("text") } }),
      }), `Median concentration of ${rows.length} pairs, from ${number(rows[0].concentration)} (${rows[0].name}) down`);
      this.clickable(div, rows);
    }

    points(div, rows, x, y, more) {
      const labelled = rows.length <= 16 && width(div) > 600;
      return [{
        type: "scatter", mode: labelled ? "markers+text" : "markers", x: rows.map(x), y: rows.map(y), marker: this.marker(rows, 9), hoverinfo: "text", cliponaxis: false,
        text: labelled ? rows.map((row) => safe(clipped(row.name, 30))) : undefined, textposition: "top center", textfont: { size: 11, color: colour("soft") }, ...more,
      }];
    }

    scatter() {
      const div = this.chart("scatter");
      const rows = this.rows.filter((row) => row.concentration !== null && row.relative_norm > 0);
      div.hidden = !rows.length;
      if (!rows.length) return;
      const traces = this.points(div, rows, (row) => 100 * row.relative_norm, (row) => row.concentration,
        { error_y: this.errors(rows, "concentration", "interval"), hovertext: rows.map((row) => lines(...this.told(row))) });
      const ticks = logTicks(rows.map((row) => 100 * row.relative_norm));
      draw(div, traces, layout(div, 420, {
        margin: { l: 10, r: 16, t: 16, b: 44 },
        xaxis: axis({ type: "log", title: "relative norm", zeroline: false, tickvals: ticks, ticktext: ticks.map((value) => `${number(Number(value.toPrecision(1)))} %`), tickfont: { size: 9.6 } }),
        yaxis: axis({ title: "concentration", rangemode: "tozero" }),
      }), `Concentration against relative norm of ${rows.length} pairs`);
      this.clickable(div, rows);
    }

    scores() {
      const div = this.chart("scores"), benchmark = this.root.querySelector('[data-control="benchmark"]').value;
      const rows = this.rows.filter((row) => row.concentration !== null)
        .map((row) => ({ ...row, gained: row.gains.find((gain) => gain.name === benchmark)?.gain ?? null })).filter((row) => row.gained !== null);
      div.hidden = !rows.length;
      if (!rows.length) return;
      const traces = this.points(div, rows, (row) => row.concentration, (row) => row.gained, {
        hovertext: rows.map((row) => lines(...this.told(row), `${safe(benchmark)}: gain ${number(row.gained)}`)),
      });
      draw(div, traces, layout(div, 380, {
        margin: { l: 10, r: 16, t: 16, b: 44 }, xaxis: axis({ title: "concentration", zeroline: false }), yaxis: axis({ title: "gain", zeroline: true }),
      }), `Gain in ${benchmark} against concentration of ${rows.length} pairs`);
      this.clickable(div, rows);
    }
  }

  // ---- the page ---------------------------------------------------------------------------------------------------

  const articles = [...document.querySelectorAll("article[data-pair]")];
  const picker = document.getElementById("picker");
  const overviewRoot = document.getElementById("overview");
  let current = null, overview = null;

  function open(number, move) {
    const article = articles.find((one) => one.dataset.pair === String(number));
    if (!article) return;
    if (current?.root !== article) {
      current?.erase();
      for (const one of articles) one.hidden = one !== article;
      current = new Pair(article);
      current.draw();
      if (picker) picker.value = String(number);
    }
    if (move) article.scrollIntoView({ block: "start" });
  }

  /** The pair that the address names, which may be a section of it. */
  const wanted = () => /^#[a-z]+-(\d+)$/.exec(location.hash)?.[1];

  function redraw() {
    computed.clear();
    overview?.draw();
    current?.draw();
  }

  if (overviewRoot) {
    overview = new Overview(overviewRoot, open);
    overview.draw();
    picker.addEventListener("change", () => open(picker.value, false));
    for (const button of document.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => {
        const next = picker.selectedIndex + Number(button.dataset.step);
        if (next >= 0 && next < picker.options.length) open(picker.options[next].value, false);
      });
    }
  }
  if (articles.length) {
    open(wanted() ?? picker?.value ?? articles[0].dataset.pair, Boolean(wanted()));
    addEventListener("hashchange", () => wanted() && open(wanted(), false));
  }

  // theme: what the reader chose, or the system's
  const root = document.documentElement;
  for (const radio of document.querySelectorAll('input[name="theme"]')) {
    radio.checked = radio.value === (root.dataset.theme ?? "auto");
    radio.addEventListener("change", () => {
      if (radio.value === "auto") delete root.dataset.theme;
      else root.dataset.theme = radio.value;
      try { localStorage.setItem("shadow-theme", radio.value); } catch { /* kept for this visit only */ }
      redraw();
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // paper: in light colours, as wide as the paper
  const paper = (on) => () => {
    if (printing === on) return;
    printing = on;
    if (on) root.dataset.printing = "";
    else delete root.dataset.printing;
    redraw();
  };
  addEventListener("beforeprint", paper(true));
  addEventListener("afterprint", paper(false));

  let drawn = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === drawn || printing) return;
    drawn = innerWidth;
    overview?.resize();
    current?.resize();
  });
  root.dataset.ready = "";
})();

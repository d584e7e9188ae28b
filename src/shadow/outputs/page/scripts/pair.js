// One pair: its data, its controls, and the charts that change with them.
// What a column of a delta would be with random signs: another column, or a number.
const UNDER_NULL = {
  concentration: 0, participation_ratio: "null_participation_ratio", spectral_norm: "null_edge", spikes: 0, spike_energy: 0,
};
class Pair {
  constructor(root) {
    this.root = root;
    this.data = JSON.parse(document.getElementById(`data-${root.dataset.pair}`).textContent);
    const columns = ["component", "module", "layer", "state", "reason", "matrices", "tensor", "rows", "cols"];
    this.cells = this.data.component.map((_, index) => ({
      index,
      ...Object.fromEntries(columns.map((name) => [name, this.data[name][index]])),
    }));
    this.components = different(this.data.component);
    this.measured = this.cells.filter((cell) => cell.state === "measured" || cell.state === "alone");
    this.subject = "delta";
    if (!this.chart("heat")) return;
    this.connect();
    this.heat();
    this.depth();
    this.spectra();
  }

  control(name) {
    return this.root.querySelector(`[data-control="${name}"]`);
  }
  chart(name) {
    return this.root.querySelector(`[data-chart="${name}"]`);
  }
  value(cell, metric, subject = this.subject) {
    return this.data.values[subject][metric]?.[cell.index] ?? null;
  }
  where(cell) {
    const layer = cell.layer === null ? "" : `layer ${cell.layer} · `;
    return `${this.components.length > 1 ? `${cell.component} · ` : ""}${layer}${cell.module}`;
  }
  show(name, label, ...drawn) {
    this.chart(name).setAttribute("aria-label", label);
    this.chart(name).replaceChildren(...drawn);
  }

  connect() {
    const on = (name, ...methods) =>
      this.control(name).addEventListener("change", () => methods.forEach((method) => this[method]()));
    const radios = [...this.root.querySelectorAll('[data-control="subject"]')];
    for (const radio of radios) {
      radio.disabled = !Object.keys(this.data.values[radio.value]).length;
      radio.addEventListener("change", () => this.choose(radio));
    }
    this.choose(radios.find((radio) => !radio.disabled) ?? radios[0]);
    on("metric", "heat");
    on("depth-metric", "depth");
    on("depth-component", "fillDepth", "depth");
    on("depth-module", "depth");
    on("spectrum-component", "fillSpectrum", "spectra");
    on("spectrum-layer", "fillSpectrum", "spectra");
    on("spectrum-module", "spectra");
    const spectral = different(["base", "tuned"].flatMap((subject) => Object.keys(this.data.values[subject])));
    metricOptions(this.control("depth-metric"), spectral, "effective_rank");
    this.fillDepth();
    this.fillSpectrum();
    this.chart("heat").addEventListener("click", ({ target }) => target.dataset.cell && this.open(target.dataset.cell));
  }

  choose(radio) {
    radio.checked = true;
    this.subject = radio.value;
    const select = this.control("metric");
    metricOptions(select, Object.keys(this.data.values[this.subject]), select.value || "relative_norm");
    this.heat();
  }

  // ---- layer by module

  /** What the cell says when pointed at: value, null, and where the matrix is. */
  told(cell, metric) {
    const head = this.where(cell), about = shared.metrics[metric], under = UNDER_NULL[metric] ?? null;
    if (cell.state === "identical") return lines(head, "identical in base and tuned: nothing changed");
    if (cell.state === "skipped") return lines(head, `not measured: ${cell.reason}`);
    const value = this.value(cell, metric);
    if (value === null && cell.state === "alone" && this.subject !== "tuned") return lines(head, "has no base, so there is no delta");
    const expected = typeof under === "string" ? this.value(cell, under) : under;
    const bound = metric === "spectral_norm" ? "null edge" : "under the null";
    return lines(
      head,
      `${title(metric)} ${value === null ? `has no value${about.null && `: ${about.null}`}` : figure(metric, value)}`,
      cell.matrices > 1 && `median of ${cell.matrices} matrices`,
      this.subject === "delta" && expected !== null && `${bound} ${figure(metric, expected)}`,
      `${cell.rows} × ${cell.cols}${cell.matrices === 1 ? `, ${cell.tensor}` : ""}`,
    );
  }

  heat() {
    const text = this.root.querySelector('[data-text="heat"]'), metric = this.control("metric").value;
    if (!metric) return text.replaceChildren("No matrix changed.");
    const values = this.cells.map((cell) => this.value(cell, metric)), range = scale(values, metric);
    text.replaceChildren(element("b", {}, title(metric)), `: ${shared.metrics[metric].text}. `);
    if (shared.metrics[metric].formula) text.append(element("code", {}, shared.metrics[metric].formula));
    const outside = this.cells.some((cell) => cell.layer === null) ? 1.5 : 0;
    const layers = Math.max(-1, ...this.cells.map((cell) => cell.layer ?? -1)) + 1, columns = layers + outside || 1;
    const ends = [range.low, range.high].map((end, place) => `${range.cut[place] ? "≤≥"[place] : ""} ${figure(metric, end)}`);
    const ramp = `linear-gradient(to right, ${range.colours.map((name) => `var(--${name})`).join(", ")})`;
    const panels = this.components.map((component) => this.panel(component, metric, range, { outside, columns }));
    const at = layerTicks(layers, this.chart("heat").clientWidth - 150).map((layer) => [outside + layer + 0.5, layer]);
    const axis = [...(outside ? [[0.5, "out"]] : []), ...at].map(([place, told]) =>
      element("text", { x: `${(100 * place) / columns}%`, y: "100%", dy: 16, "text-anchor": "middle" }, told)
    );
    panels.at(-1).lastChild.firstChild.append(
      ...axis,
      element("text", { x: "50%", y: "100%", dy: 34, "text-anchor": "middle" }, outside ? "layer (out: outside the layers)" : "layer"),
    );
    this.show(
      "heat",
      `Heat map of the ${title(metric)} of ${this.subject} by layer and module, ${values.length} cells, from${ends[0]} to${ends[1]}`,
      element("p", { class: "scale" }, ends[0], " ", element("i", { style: `background: ${ramp}` }), ends[1], range.log ? " (logarithmic)" : ""),
      ...this.components.flatMap((component, place) => [
        ...(this.components.length > 1 ? [element("h3", {}, component)] : []),
        panels[place],
      ]),
    );
  }

  /** The modules of one component as rows of cells. */
  panel(component, metric, range, { outside, columns }) {
    const cells = this.cells.filter((cell) => cell.component === component);
    const modules = different(cells.map((cell) => cell.module)), height = 100 / modules.length;
    const drawn = cells.flatMap((cell) => {
      const value = this.value(cell, metric), x = cell.layer === null ? 0 : outside + cell.layer;
      const [left, top] = [(100 * x) / columns, height * modules.indexOf(cell.module)];
      const rect = element("rect", {
        x: `${left.toFixed(3)}%`,
        y: `${top.toFixed(3)}%`,
        width: `${(100 / columns).toFixed(3)}%`,
        height: `${height.toFixed(3)}%`,
        style: `fill: ${value === null ? "transparent" : colour(range, value)}`,
        "data-cell": cell.index,
        "data-tip": this.told(cell, metric),
      });
      if (value !== null) return [rect];
      const mark = { identical: "·", skipped: "∕" }[cell.state] ?? "×";
      return [element("text", { x: `${left + 50 / columns}%`, y: `${top + height / 2}%`, class: "glyph" }, mark), rect];
    });
    return element(
      "div",
      { class: "cells" },
      element("ol", {}, ...modules.map((module) => element("li", { title: module }, module))),
      element("div", {}, element("svg", {}, ...drawn)),
    );
  }

  /** Show the spectrum of a cell of the heat map that was clicked. */
  open(index) {
    if (!this.data.spectra.curves[index]) return;
    const cell = this.cells[index];
    this.control("spectrum-component").value = cell.component;
    this.fillSpectrum();
    this.control("spectrum-layer").value = cell.layer ?? "out";
    this.fillSpectrum();
    this.control("spectrum-module").value = index;
    this.spectra();
    this.root.querySelector(`#spectra-${this.root.dataset.pair}`).scrollIntoView({ block: "start" });
  }

  // ---- depth

  fillDepth() {
    const inside = this.measured.filter((cell) => cell.layer !== null);
    this.fillComponents("depth", inside);
    const own = inside.filter((cell) => cell.component === this.control("depth-component").value);
    options(this.control("depth-module"), [["", "all"], ...different(own.map((cell) => cell.module)).map((name) => [name, name])]);
  }

  fillComponents(name, cells) {
    const components = different(cells.map((cell) => cell.component)), select = this.control(`${name}-component`);
    options(select, components.map((name) => [name, name]), select.value || "language");
    select.parentElement.hidden = components.length < 2;
  }

  depth() {
    const [component, only, metric] = ["component", "module", "metric"].map((name) => this.control(`depth-${name}`).value);
    const cells = this.measured.filter((cell) =>
      cell.layer !== null && cell.component === component && (!only || cell.module === only)
    ).sort((a, b) => a.layer - b.layer);
    const modules = different(this.cells.map((cell) => cell.module)).filter((name) => cells.some((cell) => cell.module === name));
    const series = {
      shift: (cell) => this.data.shift[metric]?.[cell.index] ?? null,
      ...Object.fromEntries(["delta", "base", "tuned"].map((of) => [of, (cell) => this.value(cell, metric, of)])),
    };
    const panels = [
      [`Shift of the ${title(metric)}: tuned − base`, ["shift"]],
      [`Delta: its own ${title(metric)}`, ["delta"]],
      ["Base (dotted) and tuned (solid)", ["base", "tuned"]],
    ].filter(([, names]) => names.some((name) => cells.some((cell) => series[name](cell) !== null)));
    const last = Math.max(0, ...cells.map((cell) => cell.layer));
    const at = layerTicks(last + 1, this.chart("depth").clientWidth - 70);
    const drawn = panels.flatMap(([text, names], place) => {
      const values = names.flatMap((name) => cells.map(series[name])).filter((value) => value !== null);
      const [low, high] = [Math.min(...values), Math.max(...values)], margin = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
      const curves = names.flatMap((name) =>
        modules.map((module, index) => ({
          points: cells.filter((cell) => cell.module === module).map((cell) => {
            const value = series[name](cell);
            return [cell.layer, value, lines(this.where(cell), `${title(metric)}, ${name} ${figure(metric, value)}`)];
          }),
          hue: hue(module, index),
          dash: name === "base" ? "2 3" : "none",
          glyph: name === "base" ? "" : GLYPHS[index % GLYPHS.length],
        }))
      );
      const x = { low: -0.2, high: last + 0.2, ticks: at, title: place === panels.length - 1 ? "layer" : "" };
      return [element("h3", {}, text), frame({ height: 112, x, y: { low: low - margin, high: high + margin }, curves })];
    });
    const entries = modules.map((module, index) => [module, hue(module, index), GLYPHS[index % GLYPHS.length]]);
    this.show(
      "depth",
      `Depth profiles of the ${title(metric)} of ${component} by layer, for ${modules.length} modules`,
      ...(drawn.length ? [legend(entries), ...drawn] : ["There is nothing to draw."]),
    );
  }

  // ---- spectra

  /** Offer what has a curve, below what is chosen already. */
  fillSpectrum() {
    const [layer, module] = ["layer", "module"].map((name) => this.control(`spectrum-${name}`));
    const able = this.cells.filter((cell) => this.data.spectra.curves[cell.index]);
    this.fillComponents("spectrum", able);
    const own = able.filter((cell) => cell.component === this.control("spectrum-component").value);
    const layers = different(own.map((cell) => cell.layer)).sort((a, b) => (a ?? -1) - (b ?? -1));
    options(layer, layers.map((index) => [index ?? "out", index ?? "outside"]), layer.value || layers.find((index) => index !== null));
    const ofLayer = own.filter((cell) => String(cell.layer ?? "out") === layer.value);
    const before = module.selectedOptions[0]?.textContent;
    options(module, ofLayer.map((cell) => [cell.index, cell.module]), ofLayer.find((cell) => cell.module === before)?.index);
  }

  spectra() {
    const text = this.root.querySelector('[data-text="spectra"]'), cell = this.cells[this.control("spectrum-module").value];
    if (!cell) return text.replaceChildren("This report has no spectra: they were not asked for, or nothing changed.");
    const curve = this.data.spectra.curves[cell.index], ranks = this.data.spectra.ranks[curve.size];
    const [edge, spikes, energy] = ["null_edge", "spikes", "spike_energy"].map((name) => this.value(cell, name, "delta"));
    const median = curve.matrices > 1 ? ", median" : "";
    const looks = {
      base: { told: `base${median}`, hue: "base", width: 1.4, dash: "2 3", glyph: "┅" },
      tuned: { told: `tuned${median}`, hue: "tuned", width: 1.4, glyph: "━" },
      delta: { told: `delta${median}`, hue: "delta", width: 2, glyph: "━" },
    };
    const known = Object.keys(looks).filter((name) => curve[name]);
    const entries = known.map((name) => [looks[name].told, looks[name].hue, looks[name].glyph]);
    const curves = known.map((name) => ({
      ...looks[name],
      points: ranks.map((rank, index) => {
        const value = curve[name][index];
        return [rank, value, lines(looks[name].told, `singular value ${rank}: ${number(value)}`)];
      }),
      dot: "target",
      glyph: "",
    }));
    if (edge !== null) {
      curves.push({ points: [[1, edge], [curve.size, edge]], hue: "text", width: 1.2, dash: "6 4" });
      entries.push([`null edge${median}`, "text", "╌"]);
    }
    if (spikes && !median) { // the first ranks are all there
      const marked = ranks.filter((rank, index) => rank === index + 1 && rank <= spikes);
      const told = (value) => `${number(value)}, ${number(value / edge)} × the null edge`;
      const points = marked.map((rank) => [rank, curve.delta[rank - 1], `spike ${rank}: ${told(curve.delta[rank - 1])}`]);
      curves.push({ points, hue: "delta", width: 0, dot: "ring" });
      entries.push([`spikes (${spikes})`, "delta", "○"]);
    }
    const caption = median
      ? `${curve.matrices} matrices, medians; ${number(spikes)} spikes in the median`
      : spikes === null
      ? "no delta"
      : `${number(spikes)} singular value${spikes === 1 ? "" : "s"} of the delta above the null edge${
        spikes ? `, with ${figure("spike_energy", energy)} of its energy` : ""
      }`;
    text.replaceChildren(element("b", {}, this.where(cell)), `, ${cell.rows} × ${cell.cols}: ${caption}.`);
    const values = curves.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value > 0);
    const y = { low: Math.min(...values) / 1.25, high: Math.max(...values) * 1.25, log: true };
    const x = { low: 0.9, high: 1.1 * curve.size, log: true, title: "rank of the singular value" };
    this.show("spectra", `Spectra of ${this.where(cell)} on logarithmic axes; ${caption}`, legend(entries), frame({ height: 320, x, y, curves }));
  }
}

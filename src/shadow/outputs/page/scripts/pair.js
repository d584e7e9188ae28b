// One pair: its data and its controls. The charts are in the files that follow.
class Pair {
  constructor(root) {
    this.root = root;
    this.data = read(root.dataset.pair);
    this.cells = this.data.group.map((group, index) => {
      const [component, module] = this.data.groups[group];
      return {
        index,
        group,
        component,
        module,
        layer: this.data.layer[index],
        far: this.data.layer[index] >= shared.layers,
        state: this.data.state[index],
        reason: this.data.reason[index],
        matrices: this.data.matrices[index],
        tensor: this.data.tensor[index],
        rows: this.data.rows[index],
        cols: this.data.cols[index],
      };
    });
    this.components = [...new Set(this.cells.map((cell) => cell.component))];
    this.subject = "delta";
    this.parts = ["heat", "experts", "depth", "spectra", "concentration", "energy", "sides"].filter((name) =>
      this.chart(name)
    );
    if (this.chart("heat")) this.connect();
    if (this.chart("sides")) this.fillSides();
    this.control("sides-metric")?.addEventListener("change", () => this.sides());
    for (const details of this.root.querySelectorAll("details.behind")) {
      details.addEventListener("toggle", () => details.open && this[details.dataset.table]());
    }
  }

  control(name) {
    return this.root.querySelector(`[data-control="${name}"]`);
  }
  chart(name) {
    return this.root.querySelector(`[data-chart="${name}"]`);
  }
  behind(name) {
    return this.root.querySelector(`[data-table="${name}"]`);
  }
  value(cell, metric, subject = this.subject) {
    return this.data.values[subject]?.[metric]?.[cell.index] ?? null;
  }
  where(cell) {
    return `${this.components.length > 1 ? `${cell.component} · ` : ""}${
      cell.layer === null ? "" : `layer ${cell.layer} · `
    }${cell.module}`;
  }
  modulesOf(component) {
    return [...new Set(this.cells.filter((cell) => cell.component === component).map((cell) => cell.module))];
  }

  connect() {
    const redraw = (...names) => () => names.forEach((name) => this[name]());
    const on = (name, ...names) => this.control(name)?.addEventListener("change", redraw(...names));
    for (const radio of this.root.querySelectorAll('[data-control="subject"]')) {
      radio.disabled = !Object.keys(this.data.values[radio.value] ?? {}).length;
      radio.addEventListener("change", () => {
        this.subject = radio.value;
        this.fillMetrics();
        this.heat();
      });
    }
    const usable = [...this.root.querySelectorAll('[data-control="subject"]')].filter((radio) => !radio.disabled);
    if (usable.length && !usable.some((radio) => radio.checked)) usable[0].checked = true;
    this.subject = usable.find((radio) => radio.checked)?.value ?? "delta";
    this.fillMetrics();
    on("metric", "heat");
    on("expert-module", "experts");
    on("expert-metric", "experts");
    on("depth-metric", "depth");
    on("depth-module", "depth");
    this.control("depth-component").addEventListener("change", () => {
      this.fillDepthModules();
      this.depth();
    });
    this.control("spectrum-component").addEventListener("change", () => {
      this.fillSpectrum(0);
      this.spectra();
    });
    this.control("spectrum-layer").addEventListener("change", () => {
      this.fillSpectrum(1);
      this.spectra();
    });
    on("spectrum-module", "spectra");
    this.fillDepth();
    this.fillExperts();
    this.fillSpectrum(-1);
  }

  draw() {
    for (const part of this.parts) this[part]();
  }
  erase() {
    for (const part of this.parts) Plotly.purge(this.chart(part));
  }
}

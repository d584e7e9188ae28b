// Layer by module, and layer by expert.
Object.assign(Pair.prototype, {
  fillMetrics() {
    const select = this.control("metric");
    const names = Object.keys(this.data.values[this.subject] ?? {});
    options(select, metricOptions(names), select.value || "relative_norm");
  },

  /** What the cell says when pointed at: value, null, interval, and where the matrix is. */
  hover(cell, metric) {
    const about = shared.metrics[metric];
    const value = this.value(cell, metric);
    const head = `<b>${safe(this.where(cell))}</b>`;
    if (cell.state === "identical") return lines(head, "identical in base and tuned: nothing changed");
    if (cell.state === "skipped") return lines(head, `not measured: ${safe(cell.reason)}`);
    if (value === null && this.subject !== "tuned" && cell.state === "alone") {
      return lines(head, "has no base, so there is no delta");
    }
    const told = value === null
      ? `${title(metric)}: no value${about.null ? `, ${safe(about.null)}` : ""}`
      : `${title(metric)} <b>${figure(metric, value)}</b>`;
    const ranges = this.subject === "delta" ? this.data.ranges[metric] : undefined;
    const spread = ranges && ranges.low[cell.index] !== null
      ? range([ranges.low[cell.index], ranges.high[cell.index]], metric)
      : null;
    let without = null;
    if (this.subject === "delta" && about.under_null !== null) {
      const expected = typeof about.under_null === "string" ? this.value(cell, about.under_null) : about.under_null;
      const bound = metric === "spectral_norm" ? "null edge" : "under the null";
      if (expected !== null) without = `${bound} ${figure(metric, expected)}`;
    }
    const module = this.data.modules[this.subject]?.[metric]?.[cell.group];
    const interval = !module
      ? null
      : `median of ${safe(cell.module)} ${figure(metric, module[0])}${
        module[1]
          ? ` (${range(module[1], metric)}, ${number(100 * module[3])} % spread over ${module[2]} layers)`
          : ", no spread over layers"
      }`;
    const several = cell.matrices > 1 ? `median of ${cell.matrices} matrices${spread ? `, ${spread}` : ""}` : null;
    const shape = cell.rows === null
      ? null
      : `${cell.rows} × ${cell.cols}${cell.matrices === 1 && cell.tensor ? `, ${safe(clipped(cell.tensor, 60))}` : ""}`;
    return lines(head, told, several, without, interval, shape);
  },

  heat() {
    const div = this.chart("heat");
    const metric = this.control("metric").value;
    const text = this.root.querySelector('[data-text="metric"]');
    const drawn = this.cells.filter((cell) => !cell.far);
    if (!metric || !drawn.length) {
      text.textContent = "No matrix changed.";
      div.hidden = true;
      return;
    }
    div.hidden = false;
    const found = scale(drawn.map((cell) => this.value(cell, metric)), metric);
    explain(text, metric, found.log);
    if (drawn.length < this.cells.length) {
      text.append(`Not drawn: ${this.cells.length - drawn.length} cells of layers from ${number(shared.layers)} on.`);
    }
    const map = (value) => (value === null ? null : found.log ? Math.log10(value) : value);
    const panels = this.components.map((component) => ({
      component,
      cells: drawn.filter((cell) => cell.component === component),
    }))
      .filter((panel) => panel.cells.length);
    const ROW = 20, GAP = panels.length > 1 ? 52 : 0, TOP = panels.length > 1 ? 66 : 42, BOTTOM = 44;
    let height = 0;
    for (const panel of panels) {
      panel.modules = [...new Set(panel.cells.map((cell) => cell.module))];
      panel.top = height;
      height += panel.modules.length * ROW + GAP;
    }
    height -= GAP;
    const most = Math.max(...drawn.map((cell) => cell.layer ?? 0)) + 1,
      outside = drawn.some((cell) => cell.layer === null);
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
        type: "heatmap",
        coloraxis: "coloraxis",
        y0: 0,
        dy: 1,
        dx: 1,
        xgap: 1,
        ygap: 1,
        hoverinfo: "text",
        hoverongaps: true,
        xaxis: `x${suffix}`,
        yaxis: `y${suffix}`,
      };
      if (layers) traces.push({ ...common, x0: 0, z: blocks.z, text: blocks.text });
      if (alone) traces.push({ ...common, x0: -1.5, z: out.z, text: out.text });
      for (
        const [state, symbol, size] of [["identical", "circle", 3], ["null", "x-thin", 5], ["skipped", "line-ne", 6]]
      ) {
        if (!marks[state].length) continue;
        traces.push({
          type: "scatter",
          mode: "markers",
          hoverinfo: "skip",
          x: marks[state].map(([x]) => x),
          y: marks[state].map(([, y]) => y),
          marker: {
            symbol,
            size,
            color: colour("soft"),
            line: { color: colour("soft"), width: state === "identical" ? 0 : 1 },
          },
          xaxis: `x${suffix}`,
          yaxis: `y${suffix}`,
          cliponaxis: false,
        });
      }
      const rows = panel.modules.length;
      const [high, low] = [1 - panel.top / height, 1 - (panel.top + rows * ROW) / height];
      const ticks = layerTicks(layers, layers * room).filter((layer) => !alone || layer || room > 22);
      made[`yaxis${suffix}`] = axis({
        domain: [Math.max(0, low), high],
        range: [rows - 0.5, -0.5],
        tickvals: panel.modules.map((_, row) => row),
        showgrid: false,
        zeroline: false,
        ticktext: panel.modules.map((module) => safe(clipped(module, 18))),
        ticks: "",
        showline: false,
        anchor: `x${suffix}`,
        fixedrange: true,
        tickfont: { color: colour("text") },
      });
      made[`xaxis${suffix}`] = axis({
        range: [outside ? -2.05 : -0.55, most - 0.45],
        tickvals: [...(alone ? [-1.5] : []), ...ticks],
        showgrid: false,
        zeroline: false,
        tickangle: 0,
        ticktext: [...(alone ? ["out"] : []), ...ticks.map(String)],
        anchor: `y${suffix}`,
        showline: false,
        fixedrange: true,
        ticklen: 3,
      });
      if (index === panels.length - 1) {
        annotations.push(
          heading(`layer${outside ? " (out: outside the layers)" : ""}`, 0, {
            x: 0.5,
            xanchor: "center",
            yanchor: "top",
            yshift: -22,
            font: { size: 12, color: colour("soft") },
          }),
        );
      }
      if (panels.length > 1) annotations.push(heading(safe(panel.component), high, { yshift: 3 }));
    });
    made.annotations = annotations;
    made.coloraxis = coloraxis(found, div);
    const known = drawn.filter((cell) => this.value(cell, metric) !== null).sort((a, b) =>
      this.value(a, metric) - this.value(b, metric)
    );
    const ends = known.length
      ? `, from ${figure(metric, this.value(known[0], metric))} (${this.where(known[0])}) to ${
        figure(metric, this.value(known.at(-1), metric))
      } (${this.where(known.at(-1))})`
      : "";
    draw(
      div,
      traces,
      made,
      `Heat map of the ${title(metric)} of ${this.subject} by layer and module, ${drawn.length} cells${ends}`,
    );
    if (!div.clicks) {
      div.clicks = true;
      div.on("plotly_click", ({ points }) => this.open(points[0]));
    }
    div.panels = panels;
    fill(
      this.behind("heat"),
      ["component", "layer", "module", [title(metric), metric], "matrices", "state"],
      drawn.map((
        cell,
      ) => [
        cell.component,
        cell.layer,
        cell.module,
        this.value(cell, metric),
        cell.matrices,
        cell.reason ? `${cell.state}: ${cell.reason}` : cell.state,
      ]),
    );
  },

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
  },

  fillExperts() {
    const experts = this.data.experts;
    const part = this.root.querySelector('[data-part="experts"]');
    part.hidden = !experts.cell;
    if (!experts.cell) return;
    const groups = [...new Set(experts.cell.map((cell) => this.data.group[cell]))];
    options(
      this.control("expert-module"),
      groups.map((group) => [group, this.data.groups[group].slice(this.components.length > 1 ? 0 : 1).join(" ")]),
    );
    options(
      this.control("expert-metric"),
      Object.keys(experts.values).map((name) => [name, title(name)]),
      "relative_norm",
    );
  },

  experts() {
    const experts = this.data.experts;
    if (!experts.cell) return;
    const div = this.chart("experts");
    const group = Number(this.control("expert-module").value), metric = this.control("expert-metric").value;
    const places = experts.cell.map((cell, index) => ({
      cell,
      expert: experts.expert[index],
      value: experts.values[metric][index],
    }))
      .filter((place) => this.data.group[place.cell] === group && this.data.layer[place.cell] !== null);
    const layers = Math.max(0, ...places.map((place) => this.data.layer[place.cell])) + 1;
    const count = Math.max(0, ...places.map((place) => place.expert)) + 1;
    const found = scale(places.map((place) => place.value), metric);
    const z = Array.from({ length: count }, () => Array(layers).fill(null));
    for (const place of places) {
      z[place.expert][this.data.layer[place.cell]] = found.log && place.value !== null
        ? Math.log10(place.value)
        : place.value;
    }
    const text = z.map((row, expert) =>
      row.map((
        value,
        layer,
      ) => (value === null ? "" : lines(
        `<b>layer ${layer} · expert ${expert}</b>`,
        `${title(metric)} <b>${figure(metric, found.log ? 10 ** value : value)}</b>`,
      )))
    );
    const ticks = layerTicks(layers, width(div) - 80);
    draw(
      div,
      [{
        type: "heatmap",
        z,
        text,
        hoverinfo: "text",
        hoverongaps: false,
        coloraxis: "coloraxis",
        x0: 0,
        dx: 1,
        y0: 0,
        dy: 1,
      }],
      layout(div, 130 + Math.min(420, Math.max(120, count * 4)), {
        margin: { l: 10, r: 12, t: 42, b: 44 },
        coloraxis: coloraxis(found, div),
        xaxis: axis({
          tickvals: ticks,
          ticktext: ticks.map(String),
          showgrid: false,
          zeroline: false,
          title: "layer",
          fixedrange: true,
        }),
        yaxis: axis({ autorange: "reversed", showgrid: false, zeroline: false, title: "expert", fixedrange: true }),
      }),
      `Heat map of the ${title(metric)} of ${places.length} experts by layer and expert`,
    );
    fill(
      this.behind("experts"),
      ["layer", "expert", [title(metric), metric]],
      places.map((place) => [this.data.layer[place.cell], place.expert, place.value]),
    );
  },
});

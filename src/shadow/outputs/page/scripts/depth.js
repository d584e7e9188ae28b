// Profiles by layer, and components side by side.
Object.assign(Pair.prototype, {
  inLayers(component) {
    return this.cells.filter((cell) => cell.component === component && cell.layer !== null && !cell.far);
  },

  fillDepth() {
    const able = this.components.filter((component) =>
      this.inLayers(component).some((cell) => cell.state === "measured" || cell.state === "alone")
    );
    options(this.control("depth-component"), able.map((name) => [name, name]), "language");
    this.root.querySelector('[data-part="depth-component"]').hidden = able.length < 2;
    const names = ["base", "tuned", "delta"].flatMap((subject) => Object.keys(this.data.values[subject] ?? {}));
    const spectral = [...new Set(names)].filter((name) => !shared.metrics[name].delta);
    options(this.control("depth-metric"), spectral.map((name) => [name, title(name)]), "effective_rank");
    this.fillDepthModules();
  },

  fillDepthModules() {
    const cells = this.inLayers(this.control("depth-component").value).filter((cell) =>
      cell.state === "measured" || cell.state === "alone"
    );
    options(
      this.control("depth-module"),
      [["", "all"], ...new Set(cells.map((cell) => cell.module))].map((one) => (Array.isArray(one) ? one : [one, one])),
    );
  },

  depth() {
    const div = this.chart("depth");
    const component = this.control("depth-component").value, metric = this.control("depth-metric").value;
    const only = this.control("depth-module").value;
    const cells = this.inLayers(component).filter((cell) =>
      (cell.state === "measured" || cell.state === "alone") && (!only || cell.module === only)
    );
    if (!cells.length || !metric) {
      div.hidden = true;
      return;
    }
    div.hidden = false;
    const modules = this.modulesOf(component).filter((module) => cells.some((cell) => cell.module === module));
    const shift = (cell) => this.data.shift[metric]?.[cell.index] ?? null;
    const panels = [
      [`Shift of the ${title(metric)}: tuned − base`, [["shift", shift, "solid"]]],
      [`Delta: its own ${title(metric)}`, [["delta", (cell) => this.value(cell, metric, "delta"), "solid"]]],
      ["Base (dotted) and tuned (solid)", [["base", (cell) => this.value(cell, metric, "base"), "dot"], [
        "tuned",
        (cell) => this.value(cell, metric, "tuned"),
        "solid",
      ]]],
    ].filter(([, series]) => series.some(([, get]) => cells.some((cell) => get(cell) !== null)));
    const traces = [], annotations = [], PANEL = 112, GAP = 38, BOTTOM = 40;
    const legend = 24 * Math.ceil((modules.length * 92) / width(div)), TOP = 34 + legend;
    const height = panels.length * (PANEL + GAP) - GAP;
    const made = layout(div, height + TOP + BOTTOM, {
      margin: { l: 10, r: 12, t: TOP, b: BOTTOM },
      showlegend: modules.length > 1,
    });
    panels.forEach(([text, series], index) => {
      const suffix = index ? index + 1 : "";
      const high = 1 - (index * (PANEL + GAP)) / height, low = high - PANEL / height;
      modules.forEach((module, place) => {
        const own = cells.filter((cell) => cell.module === module).sort((a, b) => a.layer - b.layer);
        for (const [name, get, dash] of series) {
          traces.push({
            type: "scatter",
            mode: own.length > 1 ? "lines+markers" : "markers",
            x: own.map((cell) => cell.layer),
            y: own.map(get),
            name: safe(module),
            legendgroup: module,
            showlegend: index === 0 && name !== "base",
            connectgaps: false,
            xaxis: "x",
            yaxis: `y${suffix}`,
            hoverinfo: "text",
            cliponaxis: false,
            line: { color: hue(module, place), width: name === "base" ? 1.3 : 1.7, dash },
            marker: {
              symbol: SYMBOLS[place % SYMBOLS.length],
              size: name === "base" ? 0.1 : 5,
              color: hue(module, place),
            },
            hovertext: own.map((cell) =>
              lines(
                `<b>layer ${cell.layer} · ${safe(module)}</b>`,
                `${title(metric)}, ${name} <b>${figure(metric, get(cell))}</b>`,
                cell.matrices > 1 ? `median of ${cell.matrices} matrices` : null,
              )
            ),
          });
        }
      });
      made[`yaxis${suffix}`] = axis({
        domain: [Math.max(0, low), high],
        zeroline: text.startsWith("Shift"),
        anchor: "x",
        nticks: 5,
      });
      annotations.push(heading(text, high, { yshift: 4 }));
    });
    made.legend = { ...made.legend, y: 1 + 26 / height };
    made.xaxis = axis({
      title: "layer",
      anchor: `y${panels.length > 1 ? panels.length : ""}`,
      zeroline: false,
      tickvals: layerTicks(Math.max(...cells.map((cell) => cell.layer)) + 1, width(div) - 60),
    });
    made.annotations = annotations;
    draw(
      div,
      traces,
      made,
      `Depth profiles of the ${title(metric)} of ${component}: ${
        panels.map(([text]) => text).join("; ")
      }, for ${modules.length} modules`,
    );
    fill(
      this.behind("depth"),
      ["layer", "module", ["base", metric], ["tuned", metric], "shift", ["delta", metric]],
      cells.map((
        cell,
      ) => [
        cell.layer,
        cell.module,
        this.value(cell, metric, "base"),
        this.value(cell, metric, "tuned"),
        shift(cell),
        this.value(cell, metric, "delta"),
      ]),
    );
  },

  fillSides() {
    const names = [
      "concentration",
      "relative_norm",
      "energy_share",
      "spikes",
      "effective_rank_shift",
    ];
    options(
      this.control("sides-metric"),
      names.filter((name) => this.data.depth.some((row) => row[name] !== null)).map((name) => [name, title(name)]),
    );
  },

  sides() {
    const div = this.chart("sides");
    const metric = this.control("sides-metric").value;
    const components = [...new Set(this.data.depth.map((row) => row.component))];
    div.hidden = !metric;
    if (!metric) return;
    const traces = components.map((component, place) => {
      const own = this.data.depth.filter((row) => row.component === component);
      const last = Math.max(1, ...own.map((row) => row.layer));
      return {
        type: "scatter",
        mode: "lines+markers",
        name: safe(component),
        x: own.map((row) => row.layer / last),
        y: own.map((row) => row[metric]),
        line: { color: componentHue(component), width: 1.8, dash: DASHES[place % 4] },
        marker: { size: 5, color: componentHue(component), symbol: SYMBOLS[place % SYMBOLS.length] },
        hoverinfo: "text",
        hovertext: own.map((row) =>
          lines(`<b>${safe(component)} · layer ${row.layer}</b>`, `${title(metric)} ${figure(metric, row[metric])}`)
        ),
      };
    });
    draw(
      div,
      traces,
      layout(div, 260, {
        showlegend: true,
        margin: { l: 10, r: 12, t: 34, b: 44 },
        xaxis: axis({ title: "relative depth", zeroline: false, range: [-0.03, 1.03] }),
        yaxis: axis({ title: title(metric), zeroline: true }),
      }),
      `${title(metric)} of ${components.join(", ")} by relative depth`,
    );
    fill(
      this.behind("sides"),
      ["component", "layer", [title(metric), metric]],
      this.data.depth.map((row) => [row.component, row.layer, row[metric]]),
    );
  },
});

// Concentration of every matrix, and where the energy of the update lies.
Object.assign(Pair.prototype, {
  concentration() {
    const div = this.chart("concentration");
    const cells = this.cells.filter((cell) => cell.state === "measured");
    const single = this.data.experts.values?.concentration;
    const rows = [];
    for (const [group, [component, module]] of this.data.groups.entries()) {
      const own = cells.filter((cell) => cell.group === group);
      if (!own.length) continue;
      const row = {
        name: this.components.length > 1 ? `${component} ${module}` : module,
        component,
        values: [],
        texts: [],
      };
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
      const tint = componentHue(row.component);
      return {
        type: "box",
        orientation: "h",
        x: kept.map(([value]) => value),
        y0: place,
        name: safe(row.name),
        boxpoints: kept.length > 600 ? "outliers" : "all",
        jitter: 0.6,
        pointpos: 0,
        fillcolor: "rgba(0,0,0,0)",
        line: { color: tint, width: kept.length > 2 ? 1.2 : 0 },
        width: 0.62,
        hoveron: "points",
        hoverinfo: "text",
        marker: { color: tint, size: kept.length > 100 ? 3 : 4.5, opacity: 0.55 },
        text: kept.map(([value, text]) => lines(`<b>${text}</b>`, `concentration ${number(value)}`)),
      };
    });
    const { concentration, interval } = this.data.overall;
    const shapes = [
      {
        type: "rect",
        xref: "x",
        yref: "paper",
        x0: -shared.margin,
        x1: shared.margin,
        y0: 0,
        y1: 1,
        line: { width: 0 },
        fillcolor: faded("soft", 0.13),
        layer: "below",
      },
      {
        type: "line",
        xref: "x",
        yref: "paper",
        x0: 0,
        x1: 0,
        y0: 0,
        y1: 1,
        line: { color: colour("text"), width: 1.4 },
      },
    ];
    const annotations = [
      heading("null", 1, { x: 0, xref: "x", xanchor: "center", yshift: 2, font: { size: 12, color: colour("text") } }),
    ];
    if (concentration !== null) {
      shapes.push({
        type: "line",
        xref: "x",
        yref: "paper",
        x0: concentration,
        x1: concentration,
        y0: 0,
        y1: 1,
        line: { color: colour("delta"), width: 1.2, dash: "dash" },
      });
      if (interval) {
        shapes.push({
          type: "rect",
          xref: "x",
          yref: "paper",
          x0: interval[0],
          x1: interval[1],
          y0: 0,
          y1: 1,
          line: { width: 0 },
          fillcolor: faded("delta", 0.1),
          layer: "below",
        });
      }
      const near = Math.abs(concentration) < 0.12;
      annotations.push(
        heading(`median ${fixed(concentration)}`, 1, {
          x: concentration,
          xref: "x",
          xanchor: near ? "left" : "center",
          xshift: near ? 20 : 0,
          yshift: 2,
          font: { size: 12, color: colour("delta") },
        }),
      );
    }
    const all = rows.flatMap((row) => row.values.filter((value) => value !== null));
    draw(
      div,
      traces,
      layout(div, rows.length * 24 + 80, {
        shapes,
        annotations,
        margin: { l: 10, r: 16, t: 30, b: 44 },
        xaxis: axis({
          title: "concentration",
          zeroline: false,
          range: [Math.min(-0.08, Math.min(...all) - 0.04), Math.max(0.25, Math.max(...all) + 0.04)],
        }),
        yaxis: axis({
          tickvals: rows.map((_, place) => place),
          ticktext: rows.map((row) => safe(clipped(row.name, 24))),
          range: [rows.length - 0.4, -0.6],
          showgrid: false,
          zeroline: false,
          ticks: "",
          fixedrange: true,
          tickfont: { color: colour("text") },
        }),
      }),
      `Concentration of ${all.length} matrices by module, against a null of 0; the median is ${
        number(concentration, 2)
      }`,
    );
    fill(
      this.behind("concentration"),
      ["module", "matrices", "least", "median", "largest"],
      rows.map((row) => {
        const sorted = row.values.filter((value) => value !== null).sort((a, b) => a - b), half = sorted.length / 2;
        return [
          row.name,
          sorted.length,
          sorted[0],
          (sorted[Math.ceil(half) - 1] + sorted[Math.floor(half)]) / 2,
          sorted.at(-1),
        ];
      }),
    );
  },

  energy() {
    const div = this.chart("energy");
    const modules = this.data.modules_table;
    div.hidden = !modules.length;
    if (!modules.length) return;
    const total = modules.reduce((sum, row) => sum + row.parameters, 0);
    const several = this.data.components.length > 1;
    const bars = (rows, name) => rows.map((row) => ({ ...row, name: name(row) }));
    const changed = (component) =>
      modules.filter((row) => row.component === component).reduce((sum, row) => sum + row.parameters, 0);
    const components = bars(
      this.data.components.filter((row) => row.energy_share !== null).map((row) => ({
        ...row,
        parameters: changed(row.component),
      })),
      (row) => row.component,
    );
    const groups = [
      ...(several && components.length ? [["By component", components]] : []),
      ["By module", bars(modules, (row) => (several ? `${row.component} ${row.module}` : row.module))],
    ];
    const ROW = 20, GAP = 72, DEPTH = 120, TOP = 26, BOTTOM = 40;
    const depths = [...new Set(this.data.depth.map((row) => row.component))].filter((name) =>
      this.data.depth.some((row) => row.component === name && row.energy_share !== null)
    );
    let height = groups.reduce((sum, [, rows]) => sum + rows.length * ROW + GAP, 0) + (depths.length ? DEPTH : -GAP),
      top = 0;
    const traces = [], annotations = [];
    const made = layout(div, height + TOP + BOTTOM, {
      margin: { l: 10, r: 16, t: TOP, b: BOTTOM },
      bargap: 0.3,
      barmode: "overlay",
    });
    groups.forEach(([text, rows], index) => {
      const suffix = index ? index + 1 : "";
      const high = 1 - top / height, low = 1 - (top + rows.length * ROW) / height;
      top += rows.length * ROW + GAP;
      const y = rows.map((_, row) => row);
      const shares = rows.map((row) => 100 * row.energy_share);
      const bounds = rows.map((row) => row.intervals?.energy_share ?? null);
      const told = (row, bound) =>
        lines(
          `<b>${safe(row.name)}</b>`,
          `${percent(row.energy_share)} of the energy${bound ? ` (${percent(bound[0])} to ${percent(bound[1])})` : ""}`,
          `${percent(row.parameters / total)} of the changed parameters`,
        );
      traces.push({
        type: "bar",
        orientation: "h",
        x: shares,
        y,
        xaxis: `x${suffix}`,
        yaxis: `y${suffix}`,
        marker: { color: rows.map((row) => componentHue(row.component)), opacity: 0.85 },
        hoverinfo: "text",
        hovertext: rows.map((row, place) => told(row, bounds[place])),
        textposition: "none",
        error_x: {
          type: "data",
          symmetric: false,
          array: bounds.map((bound, place) => (bound ? 100 * bound[1] - shares[place] : 0)),
          color: colour("text"),
          thickness: 1,
          width: 3,
          arrayminus: bounds.map((bound, place) => (bound ? shares[place] - 100 * bound[0] : 0)),
        },
      });
      traces.push({
        type: "scatter",
        mode: "markers",
        x: rows.map((row) => (100 * row.parameters) / total),
        y,
        xaxis: `x${suffix}`,
        yaxis: `y${suffix}`,
        hoverinfo: "text",
        hovertext: rows.map((row, place) => told(row, bounds[place])),
        marker: { symbol: "line-ns", size: 15, line: { color: colour("text"), width: 2 } },
      });
      made[`yaxis${suffix}`] = axis({
        domain: [Math.max(0, low), high],
        range: [rows.length - 0.5, -0.5],
        tickvals: y,
        ticktext: rows.map((row) => safe(clipped(row.name, 24))),
        showgrid: false,
        zeroline: false,
        ticks: "",
        anchor: `x${suffix}`,
        fixedrange: true,
        tickfont: { color: colour("text") },
      });
      made[`xaxis${suffix}`] = axis({
        anchor: `y${suffix}`,
        rangemode: "tozero",
        ticksuffix: " %",
        nticks: width(div) < 480 ? 4 : 6,
        tickangle: 0,
        title: index === groups.length - 1 ? "share of the update's energy" : "",
      });
      annotations.push(heading(text, high, { yshift: 4 }));
    });
    if (depths.length) {
      const suffix = groups.length + 1;
      depths.forEach((component) => {
        const own = this.data.depth.filter((row) => row.component === component && row.energy_share !== null);
        traces.push({
          type: "scatter",
          mode: "lines+markers",
          line: { shape: "hvh", width: 1.6, color: componentHue(component) },
          marker: { size: 4, color: componentHue(component) },
          x: own.map((row) => row.layer),
          y: own.map((row) => 100 * row.energy_share),
          xaxis: `x${suffix}`,
          yaxis: `y${suffix}`,
          name: safe(component),
          hoverinfo: "text",
          hovertext: own.map((row) =>
            lines(
              `<b>${several ? `${safe(component)} · ` : ""}layer ${row.layer}</b>`,
              `${percent(row.energy_share)} of the energy of its layers`,
            )
          ),
        });
      });
      const high = 1 - top / height;
      made[`yaxis${suffix}`] = axis({
        domain: [0, high],
        rangemode: "tozero",
        ticksuffix: " %",
        anchor: `x${suffix}`,
        nticks: 5,
      });
      made[`xaxis${suffix}`] = axis({
        anchor: `y${suffix}`,
        title: "layer",
        zeroline: false,
        tickvals: layerTicks(Math.max(...this.data.depth.map((row) => row.layer)) + 1, width(div) - 60),
      });
      annotations.push(
        heading(
          several
            ? `By layer of ${
              depths.map((name) => `<span style="color:${componentHue(name)}">${safe(name)}</span>`).join(", ")
            }`
            : "By layer",
          high,
          { yshift: 4 },
        ),
      );
    }
    made.annotations = annotations;
    draw(div, traces, made, `Share of the update's energy by ${several ? "component, " : ""}module and layer`);
    fill(this.behind("energy"), ["what", ["share of the energy", "energy_share"], ["from", "energy_share"], ["to", "energy_share"], ["share of the changed parameters", "energy_share"]], [
      ...groups.flatMap(([, rows]) =>
        rows.map((
          row,
        ) => [
          row.name,
          row.energy_share,
          row.intervals?.energy_share?.[0] ?? null,
          row.intervals?.energy_share?.[1] ?? null,
          row.parameters / total,
        ])
      ),
      ...this.data.depth.filter((row) => row.energy_share !== null).map((
        row,
      ) => [`${several ? `${row.component} ` : ""}layer ${row.layer}`, row.energy_share, null, null, null]),
    ]);
  },
});

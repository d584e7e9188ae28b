// Several pairs: ranking and scatters.
const LABELLED = 60; // pairs; ranks of more would lie on one another
class Overview {
  constructor(root, open) {
    this.root = root;
    this.open = open;
    // in the order of the table; a pair that fails a gate has no rank
    this.rows = shared.overview.map((row, place) => ({ ...row, rank: row.failed.length ? "" : String(place + 1) }));
  }

  chart(name) {
    return this.root.querySelector(`[data-chart="${name}"]`);
  }
  draw() {
    this.ranking();
    this.scatter();
  }

  told(row) {
    return [
      `<b>${safe(row.name)}</b>`,
      `concentration ${number(row.concentration)}${row.interval ? ` (${range(row.interval, "concentration")})` : ""}`,
      `relative norm ${percent(row.relative_norm)}`,
      row.failed.length ? `failed: ${safe(row.failed.join(", "))}` : null,
    ];
  }

  marker(rows, size) {
    return {
      size,
      color: rows.map((row) => (row.failed.length ? colour("page") : colour("tuned"))),
      opacity: 1,
      line: { width: 1.6, color: rows.map((row) => (row.failed.length ? colour("soft") : colour("tuned"))) },
    };
  }

  errors(rows, value, bounds) {
    return {
      type: "data",
      symmetric: false,
      color: colour("soft"),
      thickness: 1.4,
      width: 0,
      array: rows.map((row) => (row[bounds] ? row[bounds][1] - row[value] : 0)),
      arrayminus: rows.map((row) => (row[bounds] ? row[value] - row[bounds][0] : 0)),
    };
  }

  clickable(div, rows) {
    div.rows = rows;
    if (div.clicks) return;
    div.clicks = true;
    div.on("plotly_click", ({ points }) => {
      const row = div.rows[points[0].pointNumber];
      if (row) this.open(row.pair, true);
    });
  }

  ranking() {
    const div = this.chart("ranking");
    const rows = this.rows.filter((row) => row.concentration !== null);
    div.hidden = !rows.length;
    if (!rows.length) return;
    const room = Math.max(14, Math.min(46, Math.floor(width(div) / 18)));
    draw(
      div,
      [{
        type: "scatter",
        mode: "markers",
        x: rows.map((row) => row.concentration),
        y: rows.map((_, place) => place),
        marker: this.marker(rows, 9),
        error_x: this.errors(rows, "concentration", "interval"),
        hoverinfo: "text",
        hovertext: rows.map((row) => lines(...this.told(row))),
        cliponaxis: false,
      }],
      layout(div, rows.length * 22 + 66, {
        shapes: [{
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
        }],
        xaxis: axis({ title: "concentration", zeroline: true }),
        yaxis: axis({
          range: [rows.length - 0.4, -0.6],
          tickvals: rows.map((_, place) => place),
          ticktext: rows.map((row) => safe(clipped(row.name, room))),
          zeroline: false,
          ticks: "",
          fixedrange: true,
          tickfont: { color: colour("text") },
        }),
      }),
      `Median concentration of ${rows.length} pairs, from ${number(rows[0].concentration)} (${rows[0].name}) down`,
    );
    this.clickable(div, rows);
  }

  points(div, rows, x, y, more) {
    return [{
      type: "scatter",
      mode: rows.length <= LABELLED ? "markers+text" : "markers",
      x: rows.map(x),
      y: rows.map(y),
      marker: this.marker(rows, 9),
      hoverinfo: "text",
      cliponaxis: false,
      text: rows.map((row) => row.rank),
      textposition: "middle right",
      textfont: { size: 11, color: colour("soft") },
      ...more,
    }];
  }

  scatter() {
    const div = this.chart("scatter");
    if (!div) return; // too few pairs
    const rows = this.rows.filter((row) => row.concentration !== null && row.relative_norm > 0);
    div.hidden = !rows.length;
    if (!rows.length) return;
    const traces = this.points(div, rows, (row) => 100 * row.relative_norm, (row) => row.concentration, {
      error_y: this.errors(rows, "concentration", "interval"),
      hovertext: rows.map((row) => lines(...this.told(row))),
    });
    const span = logSpan(rows.map((row) => 100 * row.relative_norm));
    const ticks = logTicks(span);
    draw(
      div,
      traces,
      layout(div, 340, {
        margin: { l: 10, r: 16, t: 16, b: 44 },
        xaxis: axis({
          type: "log",
          title: "relative norm",
          zeroline: false,
          range: span.map(Math.log10),
          tickvals: ticks,
          ticktext: ticks.map((value) => `${Number(value.toPrecision(1))} %`),
        }),
        yaxis: axis({ title: "concentration", rangemode: "tozero" }),
      }),
      `Concentration against relative norm of ${rows.length} pairs`,
    );
    this.clickable(div, rows);
  }
}

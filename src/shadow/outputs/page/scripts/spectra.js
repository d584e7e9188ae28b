// Singular values on logarithmic axes.
Object.assign(Pair.prototype, {
  /** Offer what has a curve. fixed: how many of component and layer stay as the reader chose them. */
  fillSpectrum(fixed, cell) {
    const [component, layer, module] = ["component", "layer", "module"].map((name) => this.control(`spectrum-${name}`));
    const able = this.cells.filter((one) => this.data.spectra.curves[one.index]);
    const first = cell ?? able.find((one) => one.layer !== null && one.state === "measured") ?? able.find((one) =>
      one.state === "measured"
    ) ?? able[0];
    if (!first) return;
    if (fixed < 0) {
      options(
        component,
        [...new Set(able.map((one) => one.component))].map((name) => [name, name]),
        first.component,
      );
    }
    this.root.querySelector('[data-part="spectrum-component"]').hidden = component.options.length < 2;
    const own = able.filter((one) => one.component === component.value);
    const layers = [...new Set(own.map((one) => one.layer))].sort((a, b) => (a ?? -1) - (b ?? -1));
    if (fixed < 1) {
      options(
        layer,
        layers.map((number) => [number ?? "out", number ?? "outside"]),
        cell ? (cell.layer ?? "out") : fixed < 0 ? (first.layer ?? "out") : layer.value,
      );
    }
    const there = own.filter((one) => String(one.layer ?? "out") === layer.value);
    options(
      module,
      there.map((one) => [one.index, one.module]),
      cell ? cell.index : there.find((one) => one.module === module.selectedOptions[0]?.textContent)?.index,
    );
  },

  spectra() {
    const div = this.chart("spectra"), text = this.root.querySelector('[data-text="spectra"]');
    const cell = this.cells[this.control("spectrum-module").value];
    const curve = cell && this.data.spectra.curves[cell.index];
    div.hidden = !curve;
    if (!curve) {
      text.textContent = "This report has no spectra: it was made with --level norms or --no-spectra, or nothing changed.";
      return;
    }
    const ranks = this.data.spectra.ranks[curve.size];
    const edge = this.value(cell, "null_edge", "delta");
    const spikes = this.value(cell, "spikes", "delta"), energy = this.value(cell, "spike_energy", "delta");
    const traces = [];
    const several = curve.matrices > 1;
    const LOOK = { base: ["base", 1.4, "dot"], tuned: ["tuned", 1.4, "solid"], delta: ["delta", 2, "solid"] };
    if (curve.low) {
      traces.push({
        type: "scatter",
        mode: "lines",
        x: ranks,
        y: curve.low,
        line: { width: 0 },
        hoverinfo: "skip",
        showlegend: false,
      });
      traces.push({
        type: "scatter",
        mode: "lines",
        x: ranks,
        y: curve.high,
        line: { width: 0 },
        fill: "tonexty",
        fillcolor: faded("delta", 0.2),
        hoverinfo: "skip",
        name: "delta, middle 80 %",
      });
    }
    for (const [subject, [name, thick, dash]] of Object.entries(LOOK)) {
      if (!curve[subject]) continue;
      traces.push({
        type: "scatter",
        mode: "lines",
        x: ranks,
        y: curve[subject],
        name,
        line: { color: colour(name), width: thick, dash },
        hoverinfo: "text",
        hovertext: ranks.map((rank, index) =>
          lines(`<b>${name}</b>${several ? ", median" : ""}`, `σ<sub>${rank}</sub> = ${number(curve[subject][index])}`)
        ),
      });
    }
    if (edge !== null) {
      traces.push({
        type: "scatter",
        mode: "lines",
        x: [1, curve.size],
        y: [edge, edge],
        name: several ? "null edge, median" : "null edge",
        line: { color: colour("text"), width: 1.2, dash: "dash" },
        hoverinfo: "text",
        hovertext: Array(2).fill(`null edge ${number(edge)}`),
      });
    }
    if (curve.spikes?.length) {
      traces.push({
        type: "scatter",
        mode: "markers",
        x: curve.spikes.map((_, index) => index + 1),
        y: curve.spikes,
        name: `spikes (${spikes})`,
        marker: { color: colour("delta"), size: 9, symbol: "circle-open", line: { width: 2 } },
        hoverinfo: "text",
        hovertext: curve.spikes.map((value, index) =>
          lines(
            `<b>spike ${index + 1}</b>`,
            `σ<sub>${index + 1}</sub> = ${number(value)}, ${number(value / edge)} × the null edge`,
          )
        ),
      });
    }
    const range = this.data.ranges.spikes;
    const found = several
      ? `${curve.matrices} matrices, medians; ${number(spikes)} spikes in the median${
        range ? `, ${number(range.low[cell.index])} to ${number(range.high[cell.index])}` : ""
      }`
      : spikes === null
      ? "no delta"
      : spikes === 0
      ? "no singular value of the delta lies above the null edge"
      : `${number(spikes)} singular value${spikes === 1 ? "" : "s"} of the delta above the null edge, with ${
        percent(energy)
      } of its energy${
        curve.spikes && curve.spikes.length < spikes ? ` (the first ${curve.spikes.length} are marked)` : ""
      }`;
    text.replaceChildren(element("b", {}, this.where(cell)), `, ${cell.rows} × ${cell.cols}: ${found}.`);
    const exponents = { exponentformat: "power", dtick: 1, tickfont: { size: 9.6 } }; // Plotly draws whole powers a quarter larger
    draw(
      div,
      traces,
      layout(div, printing ? 300 : 400, {
        showlegend: true,
        margin: { l: 10, r: 12, t: width(div) < 520 ? 70 : 44, b: 44 },
        xaxis: axis({
          type: "log",
          title: "rank of the singular value",
          range: [-0.04, Math.log10(curve.size) + 0.03],
          ...exponents,
          zeroline: false,
        }),
        yaxis: axis({ type: "log", title: "singular value", ...exponents, zeroline: false }),
      }),
      `Spectra of ${this.where(cell)} on logarithmic axes; ${found}`,
    );
    fill(
      this.behind("spectra"),
      ["rank", "base", "tuned", "delta", "above the null edge"],
      ranks.map((
        rank,
        index,
      ) => [
        rank,
        curve.base?.[index] ?? null,
        curve.tuned?.[index] ?? null,
        curve.delta?.[index] ?? null,
        several || !curve.delta || edge === null ? "–" : curve.delta[index] > edge ? "yes" : "no",
      ]),
    );
  },
});

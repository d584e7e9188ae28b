// What all charts share: text, colours of the theme, axes, tables behind charts, colour scales.
// Text from reports enters the document as text only, and Plotly through safe().
const shared = JSON.parse(document.getElementById("shared").textContent);
const read = (id) => JSON.parse(document.getElementById(`data-${id}`).textContent);
const coarse = matchMedia("(pointer: coarse)").matches;
const PRINTED = 660; // pixels that a chart is wide on paper
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "x",
  "cross",
  "star",
  "hexagon",
  "pentagon",
  "triangle-down",
];
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
/** Text that Plotly shows as it is: it reads tags and entities in any text. */
const safe = (text) => String(text).replace(/[&<>]/g, (char) => ENTITIES[char]);
const clipped = (text, length) => {
  const chars = [...String(text)];
  return chars.length > length ? `${chars.slice(0, length - 1).join("")}…` : chars.join("");
};
const lines = (...parts) => parts.filter((part) => part !== null && part !== "").join("<br>");

/** A number for people: two digits, more where it would look like 1 without being it; whole ones as they are. */
function number(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return value.toLocaleString("en").replace("-", "−");
  if (size < 1e-3 || size >= 1e7) return value.toExponential(digits - 1).replaceAll("-", "−");
  while (digits < 4 && Number(size.toPrecision(digits)) === 1) digits += 1;
  const rounded = value.toPrecision(digits);
  return (rounded.includes("e") ? Number(rounded).toLocaleString("en") : rounded).replace("-", "−");
}
/** Values of a metric in as many digits as tell them from one another, two at least. */
function figures(metric, values) {
  const texts = (digits) => values.map((value) => figure(metric, value, digits));
  return [2, 3, 4, 5].map(texts).find((all) => new Set(all).size === new Set(values).size) ?? texts(5);
}
const fixed = (value) => value.toFixed(2).replace(/^-(?=0\.00$)/, "").replace("-", "−");
/** A value of a metric: a share as per cent. */
const figure = (metric, value, digits = 2) =>
  value !== null && shared.metrics[metric]?.share ? `${number(100 * value, digits)} %` : number(value, digits);
const percent = (value) => (value === null || value === undefined ? "–" : `${number(100 * value)} %`);
const range = ([low, high], metric) => `${figure(metric, low).replace(" %", "")} to ${figure(metric, high)}`;

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
        ? element(
          "optgroup",
          { label: entry.label },
          ...entry.options.map(([value, text]) => element("option", { value }, text)),
        )
        : element("option", { value: entry[0] }, entry[1])
    ),
  );
  const values = [...select.options].map((option) => option.value);
  select.value = values.includes(String(chosen)) ? chosen : (values[0] ?? "");
}

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
const family = () => getComputedStyle(document.body).fontFamily;
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
  gridcolor: colour("rule"),
  linecolor: colour("strong"),
  zerolinecolor: colour("strong"),
  zerolinewidth: 1,
  ticks: "outside",
  ticklen: 4,
  tickcolor: colour("strong"),
  automargin: true,
  separatethousands: true,
  fixedrange: coarse,
  ...more,
  title: { text: more.title ?? "", standoff: 8, font: { size: 12, color: colour("soft") } },
});

function layout(div, height, more) {
  return {
    height,
    width: width(div),
    showlegend: false,
    hovermode: "closest",
    dragmode: coarse ? false : "zoom",
    margin: { l: 10, r: 12, t: 10, b: 10 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: family(), size: 12, color: colour("soft") },
    hoverlabel: {
      bgcolor: colour("raised"),
      bordercolor: colour("strong"),
      align: "left",
      font: { family: family(), size: 12.5, color: colour("text") },
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("text") },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("text") } },
    ...more,
  };
}

// The buttons are named one by one: Plotly's own set has one that sends the chart to its maker's cloud.
const config = {
  displaylogo: false,
  // without a pointer to hover with, and on a narrow screen, it would stand over titles and legends
  displayModeBar: coarse || window.innerWidth < 600 ? false : "hover",
  responsive: false,
  typesetMath: false,
  showTips: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage", "resetScale2d"]],
};

/** Draw or redraw; label is what a screen reader says of the chart. */
function draw(div, traces, made, label) {
  div.setAttribute("aria-label", label);
  const name = div.dataset.chart;
  Plotly.react(div, traces, made, { ...config, toImageButtonOptions: { format: "svg", filename: `shadow-${name}` } });
}

const heading = (text, y, more = {}) => ({
  text,
  x: 0,
  y,
  xref: "paper",
  yref: "paper",
  xanchor: "left",
  yanchor: "bottom",
  showarrow: false,
  font: { size: 13, color: colour("text") },
  ...more,
});

/** Rows behind a chart. A head is a text, or a text and the metric whose values stand below it. */
function fill(details, heads, rows) {
  if (!details || !details.open) return;
  const columns = heads.map((head) => (Array.isArray(head) ? head : [head]));
  const cell = (value, column) =>
    typeof value === "number" || value === null
      ? element("td", { class: "n" }, figure(columns[column][1], value))
      : element("td", {}, String(value));
  details.querySelector(".scroll").replaceChildren(
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...columns.map(([text]) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell)))),
    ),
  );
}

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
  const facts = [
    about.range && `range ${about.range}`,
    about.unit && `unit ${about.unit}`,
    about.null && `no value when: ${about.null}`,
    about.source,
  ].filter(Boolean).join("; ");
  const more = node.querySelector("details") ?? element("details", {}, element("summary", {}, "Definition"), element("p"));
  more.lastChild.replaceChildren(
    about.formula ? element("code", {}, about.formula) : "",
    facts ? ` (${facts}). ` : " ",
    about.pitfalls,
  );
  node.replaceChildren(
    element("b", {}, title(metric)),
    `: ${about.text}. `,
    log ? "Colours are on a logarithmic scale. " : "",
    more,
  );
}

/** The range of a colour axis: a single outlier must not flatten the rest, so the ends are quantiles where they are far apart. */
function scale(values, metric) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return { metric, low: 0, high: 1, scale: sequential(), log: false };
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
    return { metric, low: -most, high: most, scale: diverging(), log };
  }
  if (metric === "concentration") low = Math.min(low, 0);
  if (high === low) high = low + (Math.abs(low) || 1) * 1e-3;
  return { metric, low, high, scale: sequential(), log, cut: [low > sorted[0], high < sorted.at(-1)] };
}

function coloraxis(found, div) {
  const map = found.log ? Math.log10 : (value) => value;
  const [low, high] = [map(found.low), map(found.high)];
  const values = [0, 0.5, 1].map((share) => low + share * (high - low));
  const texts = figures(found.metric, values.map((value) => found.log ? 10 ** value : value));
  const [under, over] = found.cut ?? [false, false];
  return {
    cmin: low,
    cmax: high,
    colorscale: found.scale,
    colorbar: {
      orientation: "h",
      thickness: 10,
      len: Math.min(300, 0.6 * width(div)),
      lenmode: "pixels",
      outlinewidth: 0,
      x: 0,
      xanchor: "left",
      yref: "container",
      y: 1,
      yanchor: "top",
      ypad: 4,
      xpad: 0,
      ticks: "",
      tickvals: values,
      tickfont: { size: 11.5 },
      ticktext: texts.map((text, index) => `${index === 0 && under ? "≤ " : index === 2 && over ? "≥ " : ""}${text}`),
    },
  };
}

/** The ends of a log axis that holds values: a factor of six at least, so that nearly equal ones look so. */
function logSpan(values) {
  const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.25];
  const wider = Math.max(1, Math.sqrt(6 * low / high));
  return [low / wider, high * wider];
}

/** Powers of ten around a span, with 2 and 5 times these where there are few. */
function logTicks([low, high]) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const digits = last - first > 3 ? [1] : [1, 2, 5];
  return [...Array(last - first + 1).keys()].flatMap((power) => digits.map((digit) => digit * 10 ** (first + power)));
}

const layerTicks = (count, room) => {
  const step = [1, 2, 4, 5, 10, 20, 25, 50].find((one) => (count / one) * 26 <= room) ?? 100;
  return [...Array(Math.ceil(count / step)).keys()].map((index) => index * step);
};

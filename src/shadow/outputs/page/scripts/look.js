// What all charts share: text, elements, colour scales, axes. Text from reports enters the document as text only.
const shared = JSON.parse(document.getElementById("shared").textContent);
const GLYPHS = ["●", "■", "◆", "▲", "✕", "✚", "★", "⬢", "⬟", "▼"];
const SEQUENTIAL = ["scale-0", "scale-1", "scale-2", "scale-3", "scale-4", "scale-5"];
const DIVERGING = ["below-2", "below-1", "zero", "above-1", "above-2"];
const HUES = { "attn.q": 0, "attn.k": 1, "attn.v": 2, "attn.o": 3, "mlp.gate": 4, "mlp.up": 5, "mlp.down": 6 };
const hue = (module, index) => `s${HUES[module.replace(/^(experts|shared)\./, "mlp.")] ?? 7 + (index % 3)}`;
const title = (metric) => metric.replaceAll("_", " ");
const lines = (...parts) => parts.filter(Boolean).join("\n");
const different = (values) => [...new Set(values)];

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
const SHARES = new Set([
  "relative_norm", "relative_norm_unrounded", "zero_share", "zero_share_expected", "spike_energy", "energy_share",
  "rows_changed", "kept", "top1_energy", "top4_energy", "top16_energy", "top20_energy", "top64_energy",
]);
/** A value of a metric: a share as per cent. */
const figure = (metric, value) => (value !== null && SHARES.has(metric) ? `${number(100 * value)} %` : number(value));

const SVG = new Set(["svg", "rect", "circle", "line", "path", "text"]);
/** An element of HTML, or of SVG where its name is one of these. */
function element(name, attributes = {}, ...children) {
  const node = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Fill a list with (value, text); its choice stays where it is still there. */
function options(select, entries, chosen = select.value) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  const at = entries.findIndex(([value]) => String(value) === String(chosen));
  select.selectedIndex = Math.max(0, at);
}
const metricOptions = (select, names, chosen) => options(select, names.map((name) => [name, title(name)]), chosen);

// What is pointed at says more of itself.
const tip = element("div", { class: "tip", hidden: "" });
document.body.append(tip);
function tell({ target, clientX, clientY }) {
  const text = target.dataset?.tip;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.max(8, Math.min(clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  const below = clientY + 18;
  tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : clientY - tip.offsetHeight - 10}px`;
}
for (const event of ["pointermove", "pointerdown"]) addEventListener(event, tell);

/** The range of a colour scale: a single outlier must not flatten the rest, so the ends are quantiles where they are far apart. */
function scale(values, metric) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return { low: 0, high: 1, colours: SEQUENTIAL, log: false, cut: [false, false] };
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const [near, far] = [at(0.02), at(0.98)];
  const log = sorted[0] > 0 && far / near > 100;
  let [low, high] = [sorted[0], sorted.at(-1)];
  if (!log && sorted.length > 40 && far > near) {
    if (high - far > 1.5 * (far - near)) high = far;
    if (near - low > 1.5 * (far - near)) low = near;
  }
  const cut = [low > sorted[0], high < sorted.at(-1)];
  if (low < 0) {
    const most = Math.max(-low, high);
    return { low: -most, high: most, colours: DIVERGING, log, cut };
  }
  if (metric === "concentration") low = Math.min(low, 0);
  if (high === low) high += (Math.abs(low) || 1) * 1e-3;
  return { low, high, colours: SEQUENTIAL, log, cut };
}

/** Where a value lies between two ends: 0 to 1. */
const between = ({ low, high, log }, value) =>
  log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);

/** The colour of a value, made of those of the style sheet, so that it follows the theme. */
function colour(range, value) {
  const place = Math.min(1, Math.max(0, between(range, value))) * (range.colours.length - 1);
  const first = Math.min(Math.floor(place), range.colours.length - 2);
  const [from, to] = range.colours.slice(first, first + 2);
  return `color-mix(in srgb, var(--${to}) ${Math.round(100 * (place - first))}%, var(--${from}))`;
}

function ticks({ low, high, log }, most = 5) {
  if (log) {
    const powers = [...Array(Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1).keys()];
    const every = Math.ceil(powers.length / 8);
    return powers.map((power) => 10 ** (power + Math.floor(Math.log10(low))))
      .filter((value, place) => place % every === 0 && value >= low && value <= high);
  }
  const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least);
  return [...Array(Math.floor(high / step) - Math.ceil(low / step) + 1).keys()]
    .map((place) => Number(((place + Math.ceil(low / step)) * step).toPrecision(12)));
}
/** A value beside an axis, which on a logarithmic one is a power of ten. */
function tick(value, { log }) {
  if (!log) return value.toLocaleString("en", { maximumSignificantDigits: 6 }).replace("-", "−");
  const power = Math.round(Math.log10(value));
  return power === 0 || power === 1 ? value : `10${[...String(power)].map((char) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(char)]).join("")}`;
}
/** Layers that have room for their number. */
function layerTicks(count, room) {
  const step = [1, 2, 4, 5, 10, 20, 25, 50].find((gap) => (count / gap) * 26 <= room) ?? 100;
  return [...Array(Math.ceil(count / step)).keys()].map((index) => index * step);
}

/**
 * Axes with curves between them, at any width: all that lies along an axis is in per cent of it. A curve has points
 * [x, y, what it says], a hue, a width, dashes, and a glyph or the radius of its dots.
 */
function frame({ height, x, y, curves }) {
  const across = (value) => `${(100 * between(x, value)).toFixed(2)}%`;
  const down = (value) => `${(100 - 100 * between(y, value)).toFixed(2)}%`;
  const line = ({ points, hue, width = 1.7, dash = "none" }) => {
    let d = "", pen = "M";
    for (const [at, value] of points) {
      if (value !== null) d += `${pen}${(1000 * between(x, at)).toFixed(1)} ${(1000 - 1000 * between(y, value)).toFixed(1)}`;
      pen = value === null ? "M" : "L";
    }
    return element("path", { d, style: `color: var(--${hue})`, "stroke-width": width, "stroke-dasharray": dash });
  };
  const dots = ({ points, hue, glyph, dot }) =>
    points.filter(([, value]) => value !== null && (glyph || dot)).map(([at, value, tip]) => {
      const look = { style: `color: var(--${hue})`, "data-tip": tip };
      if (!glyph) return element("circle", { cx: across(at), cy: down(value), r: 6, class: dot, ...look });
      return element("text", { x: across(at), y: down(value), class: "glyph", ...look }, glyph);
    });
  const paths = { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", width: "100%", height: "100%", class: "paths" };
  return element(
    "div",
    { class: "frame", style: `height: ${height}px` },
    element(
      "svg",
      {},
      ...(y.ticks ?? ticks(y)).flatMap((value) => [
        element("line", { class: "grid", x2: "100%", y1: down(value), y2: down(value) }),
        element("text", { x: -8, y: down(value), dy: "0.35em", "text-anchor": "end" }, tick(value, y)),
      ]),
      ...(x.ticks ?? ticks(x)).flatMap((value) => [
        element("line", { class: "grid", y2: "100%", x1: across(value), x2: across(value) }),
        ...(x.title === "" ? [] : [element("text", { x: across(value), y: "100%", dy: 16, "text-anchor": "middle" }, tick(value, x))]),
      ]),
      element("text", { x: "50%", y: "100%", dy: 34, "text-anchor": "middle" }, x.title),
      element("svg", paths, ...curves.map(line)),
      ...curves.flatMap(dots),
    ),
  );
}

/** What the marks of a chart mean: text, hue and glyph of each. */
const legend = (entries) =>
  element(
    "p",
    { class: "legend" },
    ...entries.map(([text, hue, glyph]) =>
      element("span", {}, element("i", { style: `color: var(--${hue})` }, glyph), ` ${text}`)
    ),
  );

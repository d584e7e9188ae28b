// The page: which pair is open, the theme, the paper.
const root = document.documentElement;
const articles = [...document.querySelectorAll("article[data-pair]")];
const overviewRoot = document.getElementById("overview");
const picker = document.getElementById("picker");
let current = null, overview = null;

/** The pair that the address names, which may be a section of it. */
const wanted = () => /^#[a-z]+-(\d+)$/.exec(location.hash)?.[1];

function show(number) {
  const article = articles.find((one) => one.dataset.pair === String(number));
  if (article) for (const one of articles) one.hidden = one !== article;
  return article;
}

function open(number, move) {
  const article = show(number);
  if (!article) return;
  if (current?.root !== article) {
    current?.erase();
    current = new Pair(article);
    current.draw();
    if (picker) picker.value = String(number);
  }
  if (move) article.scrollIntoView({ block: "start" });
}

function redraw() {
  computed.clear();
  overview?.draw();
  current?.draw();
}

// theme: what the reader chose, or the system's
for (const radio of document.querySelectorAll('input[name="theme"]')) {
  radio.checked = radio.value === (root.dataset.theme ?? "auto");
  radio.addEventListener("change", () => {
    if (radio.value === "auto") delete root.dataset.theme;
    else root.dataset.theme = radio.value;
    try {
      localStorage.setItem("shadow-theme", radio.value);
    } catch { /* kept for this visit only */ }
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
  overview?.draw();
  current?.draw();
});

if (articles.length) {
  const first = wanted() ?? picker?.value ?? articles[0].dataset.pair;
  show(first); // its text can be read before the charts are there
  await runLibrary();
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
  open(first, false);
  if (wanted()) document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "start" });
  addEventListener("hashchange", () => wanted() && open(wanted(), false));
}
root.dataset.ready = "";

// The page: which pair is open, and the theme.
const root = document.documentElement;
const articles = [...document.querySelectorAll("article[data-pair]")];
const picker = document.getElementById("picker");
const pairs = {};

/** The pair that the address names, which may be a section of it. */
const wanted = () => /^#[a-z]+-(\d+)$/.exec(location.hash)?.[1];

function open(number) {
  const article = articles.find((candidate) => candidate.dataset.pair === number);
  if (!article) return;
  for (const other of articles) other.hidden = other !== article;
  if (picker) picker.value = number;
  pairs[number] ??= new Pair(article);
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
  });
}

/** Show the pair of the address, and go to where it points. */
function follow() {
  if (!wanted()) return;
  open(wanted());
  document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "start" });
}
if (articles.length) open(picker?.value ?? articles[0].dataset.pair);
follow();
addEventListener("hashchange", follow);
picker?.addEventListener("change", () => open(picker.value));
root.dataset.ready = "";

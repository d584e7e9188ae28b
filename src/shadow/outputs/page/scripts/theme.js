"use strict";
// Runs before anything is painted: a theme that the reader chose earlier, if the browser keeps such things for files.
document.documentElement.classList.add("js");
try {
  const chosen = localStorage.getItem("shadow-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is closed to files in some browsers: the system's theme it is */ }

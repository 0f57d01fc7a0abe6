// SPDX-License-Identifier: Apache-2.0
// Filters the failures by kind.
"use strict";
document.body.classList.add("scripted");
document.querySelectorAll("[data-filter]").forEach((button, _, all) => {
  button.addEventListener("click", () => {
    all.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    document.querySelectorAll("#failures article").forEach((card) => {
      card.hidden = button.dataset.filter !== "all" && !card.dataset.tags.split(" ").includes(button.dataset.filter);
    });
  });
});

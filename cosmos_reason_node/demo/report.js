// SPDX-License-Identifier: Apache-2.0
// Plays the session back: a cursor on the timeline, the frame and the newest answers at that moment.
// Texts of the model are only ever set as textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("session-data").textContent);
  const timeline = document.getElementById("timeline");
  const cursor = document.getElementById("cursor");
  const picture = document.querySelector("#screen use");
  const moment = document.getElementById("moment");
  const play = document.getElementById("play");
  const cards = [...document.querySelectorAll("[data-kind]")];
  const stillMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let now = 0;
  let playing = null;
  document.body.classList.add("scripted");

  // Index of the last entry whose time (entry[0]) is not after t; -1 when all are.
  const newest = (entries, t) => {
    let low = 0;
    let high = entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (entries[middle][0] <= t + 1e-3) low = middle + 1; else high = middle;
    }
    return low - 1;
  };

  const showCard = (card, t) => {
    const entry = (data.lanes[card.dataset.kind] || [])[newest(data.lanes[card.dataset.kind] || [], t)];
    const [, headline, css, percent, reasoning, age] = entry || [0, "…", "unknown", 0, "the window fills", null];
    const verdict = card.querySelector(".verdict");
    const meter = card.querySelector(".meter i");
    verdict.textContent = headline;
    verdict.className = `verdict ink-${css}`;
    meter.className = css;
    meter.style.width = `${percent}%`;
    card.querySelector(".confidence b").textContent = entry ? `${percent} %` : "";
    card.querySelector(".reasoning").textContent = reasoning || "no reasoning";
    card.querySelector(".age").textContent = age === null ? "" : `${age.toFixed(2)} s after capture`;
  };

  const show = (t) => {
    now = Math.min(data.length, Math.max(0, t));
    const x = data.left + (now / data.length) * data.width;
    cursor.setAttribute("transform", `translate(${x} 0)`);
    moment.textContent = `${now.toFixed(1)} s of ${data.length.toFixed(1)} s`;
    if (picture && data.pictures.length) {
      picture.setAttribute("href", `#${data.pictures[Math.max(0, newest(data.pictures, now))][1]}`);
    }
    cards.forEach((card) => showCard(card, now));
  };

  const stop = () => {
    cancelAnimationFrame(playing);
    playing = null;
    play.textContent = "Play";
  };
  const start = () => {
    let last = null;
    if (now >= data.length - 0.05) now = 0;
    play.textContent = "Pause";
    const step = (time) => {
      if (last !== null) show(now + (time - last) / 1000);
      last = time;
      if (now >= data.length) stop(); else playing = requestAnimationFrame(step);
    };
    playing = requestAnimationFrame(step);
  };
  play.addEventListener("click", () => (playing === null ? start() : stop()));

  const seek = (event) => {
    const box = timeline.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * timeline.viewBox.baseVal.width;
    stop();
    show(((x - data.left) / data.width) * data.length);
  };
  timeline.addEventListener("pointerdown", seek);
  timeline.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) seek(event);
  });

  document.querySelectorAll("[data-filter]").forEach((button, _, all) => {
    button.addEventListener("click", () => {
      all.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      const tag = button.dataset.filter;
      document.querySelectorAll("#rows details").forEach((row) => {
        row.hidden = tag !== "all" && !row.dataset.tags.split(" ").includes(tag);
      });
    });
  });

  // Opens where the first task-completion answer turns to yes, the moment one wants to see; else at the end.
  const turn = (data.lanes.completion || []).find((entry) => entry[2] === "yes");
  show(turn ? turn[0] : data.length);
  if (stillMotion) play.title = "plays at the session's own pace";
})();

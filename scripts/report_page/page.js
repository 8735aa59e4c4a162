"use strict";
const large = document.getElementById("large"), stage = large.querySelector(".stage"), side = large.querySelector(".side");
const only = document.head.appendChild(document.createElement("style"));
const chosen = new Map();  // chapter -> the classes that are shown alone
let current = null, shown = 0;  // the row, and its panel in the large view

const galleryOf = row => row.closest(".gallery");
const visibleRows = gallery => [...gallery.querySelectorAll(".row")].filter(row => !row.hidden);

function arrange(gallery) {
  const value = name => gallery.querySelector("." + name).value;
  const key = value("key"), text = value("text").toLowerCase();
  const low = parseFloat(value("low")), high = parseFloat(value("high"));
  const sign = gallery.querySelector(".falling").checked ? -1 : 1;
  const rows = [...gallery.querySelectorAll(".row")];
  const score = new Map(rows.map(row => [row, JSON.parse(row.dataset.values)[key] ?? -1]));
  rows.sort((a, b) => sign * (score.get(a) - score.get(b)) || sign * (a.dataset.stem < b.dataset.stem ? -1 : 1));
  for (const row of rows) {
    const within = !key || !((low > score.get(row)) || (high < score.get(row)));
    row.hidden = !(within && row.dataset.stem.toLowerCase().includes(text));
  }
  gallery.querySelector(".rows").append(...rows);
  const count = rows.filter(row => !row.hidden).length;
  gallery.querySelector(".count").textContent = count === rows.length ? "" : `${count} of ${rows.length} shown`;
}

function choose(chapter, number) {
  const classes = chosen.get(chapter) ?? new Set();
  if (number === undefined) classes.clear();
  else if (!classes.delete(number)) classes.add(number);
  chosen.set(chapter, classes);
  only.textContent = [...chosen].filter(([, set]) => set.size).map(([name, set]) => {
    const places = [`#chapter${name}`, `dialog.chapter${name}`];
    const kept = places.flatMap(place => [...set].map(each => `${place} .k.c${each}`));
    const listed = [...set].map(each => `dialog.chapter${name} .side [data-class="${each}"]`);
    return `${places.map(place => place + " .k").join()} {display: none} ${kept.join()} {display: inline}`
      + `dialog.chapter${name} .side li {opacity: .45} ${listed.join()} {opacity: 1}`;
  }).join(" ");
  for (const button of document.querySelectorAll(`#chapter${chapter} .legend button`)) {
    const pressed = button.dataset.class === undefined ? !classes.size : classes.has(button.dataset.class);
    button.setAttribute("aria-pressed", pressed);
  }
}

function open(row, number) {
  current = row;
  const panels = row.querySelectorAll(".panel");
  shown = (number + panels.length) % panels.length;
  const panel = panels[shown], picture = panel.querySelector("svg").cloneNode(true);
  picture.querySelectorAll("[id]").forEach(each => each.removeAttribute("id"));
  stage.replaceChildren(picture);
  large.className = "chapter" + galleryOf(row).dataset.chapter;
  large.querySelector(".bar p").textContent = `${row.dataset.stem} · ${panel.querySelector("figcaption").textContent}`;
  const classes = panel.querySelector(".classes")?.cloneNode(true);
  const head = document.createElement("p");
  for (const [tag, text] of [["i", "class"], ["b", "Dice"], ["span", "est."]])
    head.appendChild(document.createElement(tag)).textContent = text;
  if (classes) classes.hidden = false;
  side.replaceChildren(...(classes ? [head, classes] : []));
  if (!large.open) large.showModal();
}

function move(step) {
  const rows = visibleRows(current && current.isConnected ? galleryOf(current) : document.querySelector(".gallery"));
  const place = rows.indexOf(current);
  const next = rows[place < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, place + step))];
  if (!next) return;
  current = next;
  if (large.open) open(next, shown);
  else next.focus();
}

function outline(on) {
  document.body.classList.toggle("with-truth", on);
  for (const box of document.querySelectorAll(".outline")) box.checked = on;
}

function toggleMasks(bare = !stage.classList.contains("bare")) {
  stage.classList.toggle("bare", bare);
  large.querySelector("[data-do=masks]").textContent = bare ? "show masks" : "hide masks";
}

const actions = {
  up: () => move(-1), down: () => move(1), left: () => open(current, shown - 1), right: () => open(current, shown + 1),
  masks: () => toggleMasks(), zoom: () => stage.classList.toggle("zoomed"), close: () => large.close(),
};

for (const gallery of document.querySelectorAll(".gallery")) {
  const chapter = gallery.dataset.chapter;
  gallery.querySelector(".tools").addEventListener("input", event => {
    const kind = event.target.classList;
    if (kind.contains("fill")) document.documentElement.style.setProperty("--fill", event.target.value / 100);
    else if (kind.contains("outline")) outline(event.target.checked);
    else arrange(gallery);
  });
  gallery.querySelector(".legend").addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) choose(chapter, button.dataset.class);
  });
  gallery.querySelector(".rows").addEventListener("click", event => {
    const panel = event.target.closest(".panel");
    if (panel) open(panel.closest(".row"), [...panel.parentNode.children].indexOf(panel));
  });
  gallery.addEventListener("focusin", event => { current = event.target.closest(".row") ?? current; });
  arrange(gallery);
}
large.querySelector(".bar").addEventListener("click", event => actions[event.target.closest("button")?.dataset.do]?.());
side.addEventListener("click", event => {
  const entry = event.target.closest("li");
  if (entry) choose(large.className.slice("chapter".length), entry.dataset.class);
});
stage.addEventListener("click", event => {
  const box = stage.getBoundingClientRect(), x = (event.clientX - box.x) / box.width, y = (event.clientY - box.y) / box.height;
  if (stage.classList.toggle("zoomed")) stage.scrollTo(x * (stage.scrollWidth - box.width), y * (stage.scrollHeight - box.height));
});
large.addEventListener("close", () => current?.focus());
document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, select");
  const gallery = current ? galleryOf(current) : document.querySelector(".gallery");
  if (event.ctrlKey || event.metaKey || event.altKey || !gallery) return;
  if (event.key === "Escape" && typing) {
    if (event.target.matches(".text")) event.target.value = "";
    event.target.blur();
    arrange(event.target.closest(".gallery"));
  } else if (typing) {
    return;
  } else if (event.key === "/") {
    if (large.open) large.close();
    gallery.querySelector(".text").focus();
  } else if (event.key === "g") {
    outline(!document.body.classList.contains("with-truth"));
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (large.open && event.key === "ArrowLeft") {
    actions.left();
  } else if (large.open && event.key === "ArrowRight") {
    actions.right();
  } else if (large.open && event.key === " ") {
    toggleMasks();
  } else if (!large.open && event.key === "Enter" && event.target.matches(".row")) {
    open(event.target, 1);
  } else {
    return;
  }
  event.preventDefault();
});

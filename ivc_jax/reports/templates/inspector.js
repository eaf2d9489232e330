"use strict";
// The inspector: sliders over sets that are part of the page.

const PARTS = ["cosine", "sine", "coordinates", "seeds", "score"];
const NAMES = { cosine: "V map", sine: "U map", coordinates: "IVC tokens", seeds: "seeds",
  score: "scores of single tokens" };

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text) element.textContent = text;  // never as HTML
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
}

const LEAST = 560;  // pixels of the longer side of a canvas; of several canvases less

async function startInspector(data, root) {
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const boxes = [...find("layers").querySelectorAll("input")];
  const places = data.methods.map(({ at }) => ({ layer: at[0], ratio: at[1] }));
  const panels = await Promise.all(data.panels.map(openPanel));
  let number = 0;

  async function openPanel(panel) {
    const figure = make("figure");
    const canvas = make("canvas", "", { role: "img" });
    let picture = null;
    if (panel.picture) {
      picture = new Image();
      picture.src = `data:image/webp;base64,${panel.picture}`;
      await picture.decode().catch(() => { picture = null; });
    }
    const width = picture ? picture.naturalWidth : panel.columns;
    const height = picture ? picture.naturalHeight : panel.rows;
    const least = LEAST / Math.sqrt(data.panels.length);
    const scale = Math.max(picture ? 1 : CELL, least / Math.max(width, height, 1));
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    figure.append(canvas, make("figcaption", panel.title));
    find("panels").append(figure);
    const grid = make("canvas");
    grid.width = Math.max(1, panel.columns);
    grid.height = Math.max(1, panel.rows);
    return { title: panel.title, canvas, context: canvas.getContext("2d"), picture, grid,
      cells: layCells(panel, canvas.width, canvas.height) };
  }

  /** The layers that are switched on and that the method has, at its place of the sliders. */
  function readLayers(method, { layer, ratio }) {
    const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const shown = {};
    const kept = readBits(method.sets[layer][ratio], data.tokens);
    if (on.has("kept")) shown.kept = kept;
    PARTS.filter((name) => on.has(name) && method.parts[name]).forEach((name) => {
      const { bits, bytes } = method.parts[name];
      const listed = bits || bytes;
      const here = listed[Math.min(layer, listed.length - 1)];  // one stands for all layers
      shown[name] = bits ? readBits(here, data.tokens) : readBytes(here);
    });
    return { shown, kept };
  }

  function paint() {
    const method = data.methods[number];
    const place = places[number];
    const { shown, kept } = readLayers(method, place);
    const count = kept.filter(Boolean).length;
    panels.forEach((panel) => {
      const { title, canvas, cells } = panel;
      paintPanel(panel, shown);
      const mine = cells.filter(({ token }) => kept[token]).length;
      canvas.setAttribute("aria-label", `${title}: ${mine} of ${cells.length} tokens kept`);
    });
    const share = data.tokens ? Math.round(100 * count / data.tokens) : 0;
    const flops = method.flops ? `, ${tell(method.flops[place.layer][place.ratio])}` : "";
    find("status").textContent =
      `${count} of ${data.tokens} tokens kept (${share} %)${flops}: ${method.specs[place.layer][place.ratio]}`;
    root.dataset.kept = method.sets[place.layer][place.ratio];
  }

  function tell(flops) {
    return `${(flops / 1e9).toPrecision(3)} · 10⁹ operations of the decoder in the prefill`;
  }

  function setSlider(name, values, at) {
    const slider = find(name);
    const value = values[at];
    slider.max = Math.max(0, values.length - 1);
    slider.value = at;
    slider.disabled = values.length < 2;
    const told = value === undefined || value === null ? "as it is" : String(value);
    slider.setAttribute("aria-valuetext", told);
    find(`${name}-value`).textContent = told;
  }

  function setSliders() {
    const method = data.methods[number];
    setSlider("layer", method.layers, places[number].layer);
    setSlider("ratio", method.ratios, places[number].ratio);
  }

  function chooseMethod() {
    number = Number(find("method").value);
    const method = data.methods[number];
    boxes.forEach((box) => {
      box.parentElement.hidden = box.value !== "kept" && !method.parts[box.value];
    });
    const missing = PARTS.filter((name) => !method.parts[name]).map((name) => NAMES[name]);
    const lacks = missing.length ? `This method has no ${missing.join(", no ")}.` : "";
    find("note").textContent = `${method.note} ${lacks}`.trim();
    setSliders();
    paint();
  }

  data.methods.forEach(({ spec }, n) => find("method").append(make("option", spec, { value: n })));
  const first = data.methods.findIndex(({ layers }) => layers.length);
  find("method").value = Math.max(0, first);
  find("method").addEventListener("change", chooseMethod);
  ["layer", "ratio"].forEach((name) => find(name).addEventListener("input", (event) => {
    places[number][name] = Number(event.target.value);
    setSliders();
    paint();
  }));
  find("layers").addEventListener("change", paint);
  if (data.methods.length) chooseMethod();
  root.dataset.ready = "yes";
}

startInspector(JSON.parse(document.getElementById("inspector-data").textContent),
  document.getElementById("inspector"));

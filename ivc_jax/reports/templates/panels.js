"use strict";
// Draws pictures with what a method kept: dropped cells dark, boxes on top.

const SIDE = 224;  // pixels of the longer side of a canvas
const MOST_FRAMES = 36;
const DROPPED = "rgba(0, 0, 0, 0.75)";

/** Decode each picture once; examples share them. */
function makePictures(encoded) {
  const loaded = new Map();
  return (name) => {
    if (name === null || !(name in encoded)) return [];
    if (!loaded.has(name)) {
      loaded.set(name, encoded[name].map((content) => {
        const image = new Image();
        image.src = `data:image/webp;base64,${content}`;
        return image.decode().then(() => image, () => null);
      }));
    }
    return loaded.get(name);
  };
}

/** Make the canvases of one answer: one a picture, or a map of cells for a run of frames. */
function makeCanvases(example, answer, pictures, options) {
  const count = example.grids.reduce((sum, [t, rows, columns]) => sum + t * rows * columns, 0);
  const bits = readBits(answer.bits, example.tokens);
  // learned tokens between cells: bits have no place then
  const placed = count === example.tokens;
  const canvases = [];
  let start = 0;
  example.grids.forEach((grid, number) => {
    const [t, rows, columns] = grid;
    const cells = placed ? bits.slice(start, start + t * rows * columns) : null;
    start += t * rows * columns;
    const picture = pictures.length === example.grids.length ? pictures[number] : null;
    if (picture && t === 1) {
      canvases.push(makeCanvas(grid, cells, picture, number === 0 ? boxesOf(example, answer) : null,
        options));
    } else {
      if (picture && number < pictures.length) {
        canvases.push(makeCanvas(grid, null, picture, null, options));
      }
      if (cells) canvases.push(makeCanvas(grid, cells, null, null, options));
    }
  });
  return canvases;
}

function boxesOf(example, answer) {
  if (!example.size) return null;
  return { size: example.size, target: example.box, answered: answer.box };
}

function makeCanvas(grid, cells, picture, boxes, options) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  const kept = cells ? cells.filter(Boolean).length : 0;
  canvas.setAttribute("aria-label",
    cells ? `${kept} of ${cells.length} cells kept${picture ? "" : ", without the picture"}` :
      "picture");
  setSize(canvas, grid[2], grid[1] * grid[0]);
  if (!picture) {
    drawCells(canvas, grid, cells);
    return canvas;
  }
  picture.then((image) => {
    if (!image) {
      if (cells) drawCells(canvas, grid, cells);
      return;
    }
    setSize(canvas, image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (cells && options.shade) shade(context, grid, cells);
    if (boxes && options.boxes) drawBoxes(context, boxes);
    canvas.dataset.drawn = "yes";
  });
  return canvas;
}

function setSize(canvas, width, height) {
  const scale = SIDE / Math.max(width, height, 1);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
}

/** Darken the cells of a picture that were dropped. */
function shade(context, [, rows, columns], cells) {
  const { width, height } = context.canvas;
  context.fillStyle = DROPPED;
  cells.forEach((kept, cell) => {
    if (kept) return;
    const row = Math.floor(cell / columns);
    const column = cell % columns;
    // whole pixels, so that neighbours neither overlap nor leave a line
    const left = Math.round(column * width / columns);
    const top = Math.round(row * height / rows);
    context.fillRect(left, top, Math.round((column + 1) * width / columns) - left,
      Math.round((row + 1) * height / rows) - top);
  });
}

/** Draw cells alone, frame by frame from left to right and down. */
function drawCells(canvas, [t, rows, columns], cells) {
  const frames = Math.min(t, MOST_FRAMES);
  const across = Math.ceil(Math.sqrt(frames));
  const down = Math.ceil(frames / across);
  // a gap of one cell between frames
  const width = across * (columns + 1) - 1;
  const height = down * (rows + 1) - 1;
  const side = Math.max(1, Math.floor(SIDE / Math.max(width, height)));
  canvas.width = width * side;
  canvas.height = height * side;
  const context = canvas.getContext("2d");
  for (let cell = 0; cell < frames * rows * columns; cell += 1) {
    const frame = Math.floor(cell / (rows * columns));
    const row = Math.floor(cell / columns) % rows + Math.floor(frame / across) * (rows + 1);
    const column = cell % columns + (frame % across) * (columns + 1);
    context.fillStyle = cells[cell] ? "#f0a030" : "#3a4350";
    context.fillRect(column * side, row * side, side, side);
  }
  canvas.dataset.drawn = "yes";
}

function drawBoxes(context, { size, target, answered }) {
  const across = context.canvas.width / size[0];
  const down = context.canvas.height / size[1];
  const draw = (box, colour, dashes) => {
    if (!box) return;
    const [x1, y1, x2, y2] = box;
    // a dark line below, so that it is seen on any picture
    [["#000000", 4, []], [colour, 2, dashes]].forEach(([stroke, line, dash]) => {
      context.strokeStyle = stroke;
      context.lineWidth = line;
      context.setLineDash(dash);
      context.strokeRect(x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down);
    });
  };
  draw(target, "#ffffff", [5, 4]);
  draw(answered, "#56b4e9", []);
}

"use strict";
// Draws the layers of a choice over a picture, or over bare cells.

const CELL = 12;  // least pixels of a cell without a picture
const BARE = [201, 211, 221, 1];  // what a cell is without a picture: red, green, blue, opacity
const DROPPED = [0, 0, 0, 0.75];
const TINTS = { cosine: [213, 94, 0], sine: [0, 114, 178], score: [0, 158, 115] };
const STRONGEST = 0.85;  // opacity of the largest score
const FRAME = "#733380";  // of an IVC token

/** Read scores: base64 of one byte a token. */
function readBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Where the cells of a panel lie on a canvas, in whole pixels. */
function layCells(panel, width, height) {
  return panel.tokens.map((token, cell) => {
    const row = Math.floor(cell / panel.columns);
    const column = cell % panel.columns;
    const left = Math.round(column * width / panel.columns);
    const top = Math.round(row * height / panel.rows);
    return { token, cell, left, top,
      width: Math.round((column + 1) * width / panel.columns) - left,
      height: Math.round((row + 1) * height / panel.rows) - top };
  }).filter(({ token }) => token >= 0);
}

/** Lay a colour [red, green, blue, opacity] over another one. */
function over([red, green, blue, alpha], below) {
  const left = below[3] * (1 - alpha);
  const sum = alpha + left;
  if (!sum) return below;
  const mix = (upper, lower) => (upper * alpha + lower * left) / sum;
  return [mix(red, below[0]), mix(green, below[1]), mix(blue, below[2]), sum];
}

function mixCell(token, shown, below) {
  let colour = below;
  Object.entries(TINTS).forEach(([name, tint]) => {
    if (shown[name]) colour = over([...tint, STRONGEST * shown[name][token] / 255], colour);
  });
  return shown.kept && !shown.kept[token] ? over(DROPPED, colour) : colour;
}

/**
 * Draw a panel.
 * panel: its context, cells, grid (a canvas of one pixel a cell) and picture (decoded, or null).
 * shown: layers by name, bool or 0..255 a token; what is missing is off.
 */
function paintPanel({ context, cells, grid, picture }, shown) {
  const { width, height } = context.canvas;
  context.clearRect(0, 0, width, height);
  if (picture) context.drawImage(picture, 0, 0, width, height);
  if (cells.length) {
    // one small image for all cells: a thousand rectangles would take ten times as long
    const pixels = new ImageData(grid.width, grid.height);
    const below = picture ? [0, 0, 0, 0] : BARE;
    cells.forEach(({ token, cell }) => {
      const [red, green, blue, alpha] = mixCell(token, shown, below);
      pixels.data.set([red, green, blue, 255 * alpha], 4 * cell);
    });
    grid.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(grid, 0, 0, width, height);
    context.imageSmoothingEnabled = true;
  }
  const marked = (name) => (shown[name] ? cells.filter(({ token }) => shown[name][token]) : []);
  frameCells(context, marked("coordinates"));
  dotCells(context, marked("seeds"));
}

/** Frame cells: a light line inside of a dark one, so that it is seen on any picture. */
function frameCells(context, cells) {
  [[FRAME, 2, 1], ["#ffffff", 1, 2.5]].forEach(([colour, line, inset]) => {
    context.beginPath();
    cells.forEach((c) => context.rect(c.left + inset, c.top + inset,
      Math.max(1, c.width - 2 * inset), Math.max(1, c.height - 2 * inset)));
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.stroke();
  });
}

function dotCells(context, cells) {
  context.beginPath();
  cells.forEach((c) => {
    const [x, y] = [c.left + c.width / 2, c.top + c.height / 2];
    const radius = Math.max(2, Math.min(c.width, c.height) / 5);
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  });
  context.fillStyle = "#ffffff";
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = "#000000";
  context.stroke();
}

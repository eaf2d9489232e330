"use strict";
// Draws the layers of a choice over a picture, or over bare cells.

const CELL = 12;  // least pixels of a cell without a picture
const DROPPED = "rgba(0, 0, 0, 0.75)";
const TINTS = { cosine: "213, 94, 0", sine: "0, 114, 178", score: "0, 158, 115" };
const FRAME = "#733380";  // of an IVC token

/** Read scores: base64 of one byte a token. */
function readBytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Where the cells of a panel lie on a canvas, in whole pixels: they neither overlap nor part. */
function layCells(panel, width, height) {
  return panel.tokens.map((token, cell) => {
    const row = Math.floor(cell / panel.columns);
    const column = cell % panel.columns;
    const left = Math.round(column * width / panel.columns);
    const top = Math.round(row * height / panel.rows);
    return { token, left, top,
      width: Math.round((column + 1) * width / panel.columns) - left,
      height: Math.round((row + 1) * height / panel.rows) - top };
  }).filter(({ token }) => token >= 0);
}

/**
 * Draw a panel.
 * picture: decoded, or null. shown: layers by name, bool or 0..255 a token; what is missing is off.
 */
function paintPanel(context, cells, picture, shown) {
  const { width, height } = context.canvas;
  if (picture) {
    context.drawImage(picture, 0, 0, width, height);
  } else {
    context.clearRect(0, 0, width, height);
    context.fillStyle = "#c9d3dd";
    cells.forEach((c) => context.fillRect(c.left, c.top, c.width - 1, c.height - 1));
  }
  Object.entries(TINTS).forEach(([name, colour]) => {
    const values = shown[name];
    if (!values) return;
    cells.forEach((c) => {
      context.fillStyle = `rgba(${colour}, ${(0.85 * values[c.token] / 255).toFixed(3)})`;
      context.fillRect(c.left, c.top, c.width, c.height);
    });
  });
  if (shown.kept) {
    context.fillStyle = DROPPED;
    cells.forEach((c) => {
      if (!shown.kept[c.token]) context.fillRect(c.left, c.top, c.width, c.height);
    });
  }
  if (shown.coordinates) cells.forEach((c) => { if (shown.coordinates[c.token]) frame(context, c); });
  if (shown.seeds) cells.forEach((c) => { if (shown.seeds[c.token]) dot(context, c); });
}

function frame(context, c) {
  // a light line inside of the dark one, so that it is seen on any picture
  [[FRAME, 1], ["#ffffff", 3]].forEach(([colour, inset]) => {
    context.strokeStyle = colour;
    context.lineWidth = colour === FRAME ? 2 : 1;
    context.strokeRect(c.left + inset, c.top + inset, c.width - 2 * inset, c.height - 2 * inset);
  });
}

function dot(context, c) {
  const radius = Math.max(2, Math.min(c.width, c.height) / 5);
  context.beginPath();
  context.arc(c.left + c.width / 2, c.top + c.height / 2, radius, 0, 2 * Math.PI);
  context.fillStyle = "#ffffff";
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = "#000000";
  context.stroke();
}

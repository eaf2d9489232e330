"use strict";
// What is asked of the examples: which of them are shown, and in which order. Touches no element.

/** Read a kept set: base64 of one bit a token, lowest first; "" is all of them. */
function readBits(text, count) {
  if (text === "") return new Array(count).fill(true);
  const bytes = atob(text);
  return Array.from({ length: count }, (_, token) =>
    Boolean((bytes.charCodeAt(token >> 3) >> (token & 7)) & 1));
}

const isScored = (answer) => Boolean(answer) && answer.score !== null;
const isRight = (answer) => isScored(answer) && answer.score >= 1;
const isWrong = (answer) => isScored(answer) && answer.score < 1;
const isFailed = (answer) => Boolean(answer) && answer.error !== undefined;

/** Filters by name: each says whether an example is shown. `pair` is the two compared methods. */
const FILTERS = {
  all: () => true,
  disagree: (shown) => shown.some(isRight) && shown.some(isWrong),
  "first-wrong": (shown, pair) => isWrong(pair[0]) && isRight(pair[1]),
  "first-right": (shown, pair) => isRight(pair[0]) && isWrong(pair[1]),
  "all-wrong": (shown) => shown.some(isScored) && !shown.some(isRight),
  "all-right": (shown) => shown.some(isScored) && !shown.some(isWrong),
  failed: (shown) => shown.some(isFailed),
};

const listScores = (answers) => answers.filter(isScored).map((answer) => answer.score);
const findSpread = (scores) => (scores.length ? Math.max(...scores) - Math.min(...scores) : -1);
const findMean = (scores) =>
  scores.length ? scores.reduce((sum, score) => sum + score, 0) / scores.length : 2;
const findDifference = (pair) => (pair.every(isScored) ? pair[0].score - pair[1].score : Infinity);

/** Orders by name: each gives a number, the smallest comes first. */
const ORDERS = {
  file: () => 0,
  difference: (shown, pair) => findDifference(pair),
  spread: (shown) => -findSpread(listScores(shown)),
  score: (shown) => findMean(listScores(shown)),
};

/**
 * Return the numbers of the examples that are shown, in order.
 * choice: task (-1 is any), filter, order, first, second (methods), methods (shown), text.
 */
function choose(examples, choice) {
  const wanted = choice.text.trim().toLowerCase();
  const found = [];
  examples.forEach((example, number) => {
    if (choice.task >= 0 && example.task !== choice.task) return;
    if (wanted && !`${example.id} ${example.question} ${example.target}`.toLowerCase()
      .includes(wanted)) return;
    const shown = choice.methods.map((method) => example.answers[method]);
    const pair = [example.answers[choice.first], example.answers[choice.second]];
    if (!FILTERS[choice.filter](shown, pair)) return;
    found.push([ORDERS[choice.order](shown, pair), number]);
  });
  // comparing, not subtracting: infinity minus itself is no order
  found.sort((a, b) => (a[0] === b[0] ? a[1] - b[1] : a[0] < b[0] ? -1 : 1));
  return found.map((entry) => entry[1]);
}

const nameExample = (data, example) => `${data.tasks[example.task]}/${example.id}`;
const linkExample = (data, example) =>
  `#example=${encodeURIComponent(nameExample(data, example))}`;

/** Find the example that an address names; -1 is none. */
function findLinked(data, hash) {
  if (!hash.startsWith("#example=")) return -1;
  let name;
  try {
    name = decodeURIComponent(hash.slice("#example=".length));
  } catch {
    return -1;  // not an address of ours
  }
  return data.examples.findIndex((example) => nameExample(data, example) === name);
}

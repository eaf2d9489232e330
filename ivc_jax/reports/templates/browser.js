"use strict";
// The page of answers: controls, cards, keys and addresses.

const PER_PAGE = 20;
const SHOWN_METHODS = 12;  // at first; the reader may choose others
const LONGEST = 160;  // letters of an answer before it is folded

function make(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = text;  // never as HTML
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
}

function startBrowser(data, root) {
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const picturesOf = makePictures(data.pictures);
  const list = find("list");
  let order = [];
  let page = 0;

  const number = (name) => Number(find(name).value);
  const readMethods = () => [...find("methods").querySelectorAll("input")]
    .filter((box) => box.checked).map((box) => Number(box.value));
  const countPages = () => Math.max(1, Math.ceil(order.length / PER_PAGE));

  function fillControls() {
    data.tasks.forEach((task, n) => find("task").append(make("option", task, { value: n })));
    data.methods.forEach((method, n) => {
      find("first").append(make("option", method.name, { value: n }));
      find("second").append(make("option", method.name, { value: n }));
      const label = make("label", null, { title: method.spec });
      const box = make("input", null, { type: "checkbox", value: n });
      box.checked = n < SHOWN_METHODS;
      label.append(box, ` ${method.name}`);
      find("methods").append(label);
    });
    const named = (test) => Math.max(0, data.methods.findIndex(({ spec }) => test(spec)));
    find("second").value = named((spec) => spec === "dense");
    const ivc = data.methods.findIndex(({ spec }) => /^ivc(:|$)/.test(spec));
    find("first").value = ivc >= 0 ? ivc : named((spec) => spec !== "dense");
    nameFilters();
  }

  /** Say in the filters which methods they compare. */
  function nameFilters() {
    const [first, second] = ["first", "second"].map((name) => data.methods[number(name)].name);
    const option = (name, value) => find(name).querySelector(`option[value="${value}"]`);
    option("filter", "first-wrong").textContent = `${first} wrong, ${second} right`;
    option("filter", "first-right").textContent = `${first} right, ${second} wrong`;
    option("order", "difference").textContent = `score of ${first} less ${second}`;
  }

  function refresh() {
    nameFilters();
    order = choose(data.examples, {
      task: number("task"), filter: find("filter").value, order: find("order").value,
      first: number("first"), second: number("second"), methods: readMethods(),
      text: find("text").value,
    });
    page = 0;
    render();
  }

  function render() {
    const methods = readMethods();
    const options = { shade: find("shade").checked, boxes: find("boxes").checked };
    const shown = order.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    list.replaceChildren(...shown.map((n, place) => {
      const card = makeCard(data.examples[n], methods, options);
      card.tabIndex = place === 0 ? 0 : -1;
      return card;
    }));
    find("status").textContent = `${order.length} of ${data.examples.length} examples, ` +
      `page ${page + 1} of ${countPages()}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page + 1 >= countPages();
  }

  function makeCard(example, methods, options) {
    const name = nameExample(data, example);
    const card = make("article", null, { "aria-label": name, "data-example": name });
    const heading = make("h3");
    heading.append(make("a", name, { href: linkExample(data, example), tabindex: "-1" }));
    if (example.category) heading.append(make("span", example.category, { class: "category" }));
    const question = make("p", example.question, { class: "question" });
    const target = make("p", "Reference: ", { class: "target" });
    target.append(make("code", example.target));
    const panels = make("div", null, { class: "panels" });
    methods.forEach((method) => panels.append(makePanel(example, method, options)));
    card.append(heading, question, target, panels);
    return card;
  }

  function makePanel(example, method, options) {
    const answer = example.answers[method];
    const panel = make("div", null, { class: "panel", "data-method": data.methods[method].spec });
    panel.append(make("h4", data.methods[method].name, { title: data.methods[method].spec }));
    if (!answer) {
      panel.append(make("p", "not run", { class: "mark" }));
      return panel;
    }
    if (isFailed(answer)) {
      panel.append(make("p", "⚠ failed", { class: "mark wrong" }), make("p", answer.error));
      return panel;
    }
    panel.append(...makeCanvases(example, answer, picturesOf(example.picture), options));
    const right = isRight(answer);
    const partial = answer.score > 0 && answer.score < 1 ? `, ${answer.score.toFixed(3)}` : "";
    panel.append(make("p", `${right ? "✓ right" : "✗ wrong"}${partial}`,
      { class: `mark ${right ? "right" : "wrong"}` }));
    panel.append(makeText(answer.text));
    panel.append(make("p", `${answer.kept} of ${example.tokens} tokens`, { class: "count" }));
    return panel;
  }

  function makeText(text) {
    if (text.length <= LONGEST) return make("code", text || "(nothing)", { class: "answer" });
    const details = make("details");
    details.append(make("summary", `${text.slice(0, LONGEST)}…`), make("code", text));
    return details;
  }

  /** Move the focus to a card of the page that is shown, and the address with it. */
  function focusCard(place) {
    const cards = [...list.children];
    const card = cards[place];
    if (!card) return;
    cards.forEach((each) => { each.tabIndex = each === card ? 0 : -1; });
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
    const example = data.examples[order[page * PER_PAGE + place]];
    history.replaceState(null, "", linkExample(data, example));
  }

  /** Move to an example by its place among those that are found. */
  function goTo(place) {
    const last = order.length - 1;
    if (last < 0) return;
    const wanted = Math.min(Math.max(place, 0), last);
    const onPage = Math.floor(wanted / PER_PAGE);
    if (onPage !== page) {
      page = onPage;
      render();
    }
    focusCard(wanted % PER_PAGE);
  }

  function turn(step) {
    page = Math.min(Math.max(page + step, 0), countPages() - 1);
    render();
    focusCard(0);
  }

  function onKey(event) {
    // only while a card itself has the focus: keys of other elements are theirs
    const card = [...list.children].indexOf(event.target);
    if (card < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = page * PER_PAGE + card;
    const places = { ArrowDown: here + 1, ArrowUp: here - 1, j: here + 1, k: here - 1,
      PageDown: (page + 1) * PER_PAGE, PageUp: (page - 1) * PER_PAGE, Home: 0,
      End: order.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    goTo(places[event.key]);
  }

  function openLinked() {
    const linked = findLinked(data, location.hash);
    if (linked < 0) {
      if (location.hash.startsWith("#example=")) {
        find("status").textContent += "; the linked example is not on this page";
      }
      return;
    }
    if (!order.includes(linked)) {  // filters must not hide what was asked for
      find("task").value = "-1";
      find("filter").value = "all";
      find("text").value = "";
      refresh();
    }
    goTo(order.indexOf(linked));
  }

  fillControls();
  refresh();
  ["task", "filter", "order", "first", "second", "methods"].forEach((name) =>
    find(name).addEventListener("change", refresh));
  find("text").addEventListener("input", refresh);
  ["shade", "boxes"].forEach((name) => find(name).addEventListener("change", render));
  find("previous").addEventListener("click", () => turn(-1));
  find("next").addEventListener("click", () => turn(1));
  list.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", openLinked);
  openLinked();
}

startBrowser(JSON.parse(document.getElementById("answers-data").textContent),
  document.getElementById("answers"));

"use strict";
const COLOURS = 8;
const find = (id) => document.getElementById(id);
const colour = (category) => (category === null ? "" : `--own: var(--c${category % COLOURS})`);

function make(tag, options = {}, ...children) {
  const { data: attributes = {}, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const several = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

// A disagreement is a button that shows its details on focus, click and hover.
function disagreementButton(text, { category, name, isKept, isFirst = false, className = "" }, explain) {
  const button = make("button", {
    type: "button", textContent: text || "⏎", tabIndex: isFirst ? 0 : -1, className: `token${isKept ? " kept" : ""}${text && !text.trim() ? " blank" : ""}${className}`,
    data: { style: colour(category), "aria-pressed": "false", "aria-label": `${text ? text.trim() || "space" : "end"}, disagreement${category === null ? "" : `, ${name}`}` },
  });
  const select = () => {
    document.querySelectorAll("button.token[aria-pressed=true]").forEach((pressed) => pressed.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", "true");
    explain();
  };
  for (const event of ["focus", "click", "mouseenter"]) button.addEventListener(event, select);
  return button;
}

// Any other token is a span that does the same.
function plainToken(text, className, explain) {
  const plain = make("span", { textContent: text, className });
  for (const event of ["focus", "click", "mouseenter"]) plain.addEventListener(event, explain);
  return plain;
}

// Shows the details of one token under the answers.
function showDetails(rung, place, isDecision, rows) {
  const details = make("dl");
  for (const [name, value] of rows) details.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
  find("why").replaceChildren(make("strong", { textContent: `${rung}, token ${place + 1}${isDecision ? ": a disagreement" : ""}` }), details);
}

const steering = (category, name, coefficient, window) => `${category} ${name}, coefficient ${Number(coefficient.toFixed(2))}, last ${window} position${window === 1 ? "" : "s"}`;

function showLegend(titles) {
  const sorted = [...titles].sort(([first], [second]) => first - second);
  find("legend").replaceChildren(...sorted.map(([category, name]) => make("li", { data: { style: colour(category) } }, make("i"), `${category} ${name}`)));
}

// Left and right move between the disagreements of an answer, with shift between tokens.
document.addEventListener("keydown", (event) => {
  const [group, isForward] = [event.target.closest(".tokens"), event.key === "ArrowRight"];
  if (!group || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const sibling = isForward ? "nextElementSibling" : "previousElementSibling";
  let next = event.target === group ? group[isForward ? "firstElementChild" : "lastElementChild"] : event.target[sibling];
  while (next && !event.shiftKey && !next.matches("button.token")) next = next[sibling];
  if (!next) return;
  event.preventDefault();
  if (event.target !== group) event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

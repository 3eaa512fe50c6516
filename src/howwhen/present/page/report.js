(async () => {
  const PLACE = 0, ID = 1, BASE = 2, THINKING = 3, CATEGORY = 4, COEFFICIENT = 5, WINDOW = 6, BASE_LOG = 7, THINKING_LOG = 8, TRIED = 9;
  const data = await unpack(find("packed").textContent.trim());
  const state = { shown: [], problem: null, isReady: false, rung: data.rungs.includes("hybrid") ? "hybrid" : data.rungs[0] };
  const PANES = { base: () => "base", thinking: () => "thinking", third: () => state.rung };

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  const [MODE, OTHER_MODE] = data.modes;
  const isRight = (problem, rung) => problem.answers[rung]?.[MODE] === "correct";
  const MARKS = { correct: "✓", wrong: "✗" };
  const mark = (grade) => MARKS[grade] ?? "?";
  const FILTERS = {
    all: () => true,
    gained: (problem) => isRight(problem, "hybrid") && !isRight(problem, "base"),
    missed: (problem) => isRight(problem, "thinking") && !isRight(problem, "hybrid"),
    lost: (problem) => isRight(problem, "base") && !isRight(problem, "hybrid"),
    none: (problem) => !data.rungs.some((rung) => isRight(problem, rung)),
    steered: (problem) => problem.answers.hybrid?.decisions.length > 0,
  };

  const quoted = (piece) => (piece === null ? "nothing" : JSON.stringify(data.pieces[piece]));
  const logProb = (hundredths) => (hundredths === null ? "none" : (hundredths / 100).toFixed(2));
  const title = (rung, category) => (category === null ? "" : data.titles[rung][category]);

  function list() {
    const wanted = find("search").value.trim().toLowerCase();
    const chosen = FILTERS[find("filter").value];
    state.shown = data.problems.filter((problem) => chosen(problem) && problem.question.toLowerCase().includes(wanted));
    find("problems").replaceChildren(
      ...state.shown.map((problem) => {
        const marks = ["base", "hybrid", "thinking"].filter((rung) => data.rungs.includes(rung)).map((rung) => mark(problem.answers[rung][MODE])).join("");
        return make("option", { value: problem.id, textContent: `${marks} ${problem.question}`, title: problem.question });
      }),
    );
    find("count").textContent = `${state.shown.length} of ${data.problems.length} problems; marks: base, hybrid, thinking`;
    const kept = state.shown.includes(state.problem) ? state.problem : state.shown[0] ?? null;
    show(kept);
  }

  function show(problem) {
    state.problem = problem;
    find("why").replaceChildren("Choose a disagreement to see which model wanted what.");
    find("question").replaceChildren();
    find("legend").replaceChildren();
    for (const [pane, rung] of Object.entries(PANES)) fill(find(`pane-${pane}`), rung(), problem);
    if (!problem) return;
    find("problems").value = problem.id;
    find("question").append(make("strong", { textContent: problem.question }), ` Gold answer: ${problem.gold}`);
    const used = problem.answers[state.rung].decisions.map((decision) => decision[CATEGORY]).filter((category) => category !== null);
    showLegend(new Map(used.map((category) => [category, title(state.rung, category)])));
    if (state.isReady) history.replaceState(null, "", `#problem=${encodeURIComponent(problem.id)}`);
  }

  function fill(pane, rung, problem) {
    const answer = problem?.answers[rung];
    const grade = answer ? answer[MODE].replace("_", " ") : "";
    pane.querySelector(".who").textContent = rung;
    pane.setAttribute("aria-label", rung);
    const gradeNote = pane.querySelector(".grade");
    gradeNote.textContent = grade && `${mark(grade)} ${grade}`;
    gradeNote.className = `grade ${grade === "correct" ? "correct" : "other"}`;
    const other = answer && answer[OTHER_MODE] !== answer[MODE] ? `; ${OTHER_MODE} grade: ${answer[OTHER_MODE].replace("_", " ")}` : "";
    pane.querySelector(".why-grade").textContent = answer ? `${answer.reason}${other}. ${several(answer.tokens.length, "token")}, ${several(answer.decisions.length, "disagreement")}` : "this rung has no answer here";
    const decisions = new Map((answer?.decisions ?? []).map((decision) => [decision[PLACE], decision]));
    const baseTokens = problem?.answers.base?.tokens ?? [];
    const fork = rung === "base" ? -1 : (answer?.tokens ?? []).findIndex((piece, place) => piece !== baseTokens[place]);
    const tokens = (answer?.tokens ?? []).map((piece, place) => token(rung, answer, place, piece, decisions.get(place), place === fork));
    pane.querySelector(".tokens").replaceChildren(...tokens);
    const first = pane.querySelector("button.token");
    if (first) first.tabIndex = 0;
  }

  function token(rung, answer, place, piece, decision, isFork) {
    const text = data.pieces[piece];
    const fork = isFork ? " fork" : "";
    if (!decision) return plainToken(text, fork.trim(), () => explain(rung, answer, place, null));
    const category = decision[CATEGORY];
    const options = { category, name: title(rung, category), isKept: decision[ID] === decision[BASE], className: fork };
    return disagreementButton(text, options, () => explain(rung, answer, place, decision));
  }

  function explain(rung, answer, place, decision) {
    const rows = [];
    if (decision) {
      const wrote = quoted(decision[ID]);
      rows.push(["written", decision[ID] === decision[BASE] ? `${wrote}, the base's own choice after all` : wrote]);
      rows.push(["base wanted", quoted(decision[BASE])]);
      if (decision[THINKING] !== null) rows.push(["thinking model wanted", quoted(decision[THINKING])]);
      if (decision[CATEGORY] !== null) rows.push(["steered with", steering(decision[CATEGORY], title(rung, decision[CATEGORY]), decision[COEFFICIENT], decision[WINDOW])]);
      rows.push(["log-probability", `${logProb(decision[BASE_LOG])} base${decision[THINKING] !== null ? `, ${logProb(decision[THINKING_LOG])} thinking model` : ""} (nats)`]);
      if (decision[TRIED].length) rows.push(["tried", decision[TRIED].map(([strength, window, id, log]) => `${strength} on ${window}: ${quoted(id)} (${logProb(log)})`).join("; ")]);
    } else {
      rows.push(["written", `${quoted(answer.tokens[place])}, as ${rung === "thinking" ? "the thinking model" : "the base"} chose`]);
      if (answer.base) rows.push(["log-probability", `${logProb(answer.base[place])} base, ${logProb(answer.thinking[place])} thinking model (nats)`]);
    }
    showDetails(rung, place, decision !== null, rows);
  }

  function step(by) {
    const next = state.shown[state.shown.indexOf(state.problem) + by];
    if (next) show(next);
  }

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select") || !event.target.closest(".viewer")) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  find("rung").append(...data.rungs.filter((rung) => rung !== "base" && rung !== "thinking").map((rung) => make("option", { value: rung, textContent: rung, selected: rung === state.rung })));
  find("rung").addEventListener("change", () => { state.rung = find("rung").value; show(state.problem); });
  find("filter").addEventListener("change", list);
  find("search").addEventListener("input", list);
  find("problems").addEventListener("change", () => show(data.problems.find((problem) => problem.id === find("problems").value)));
  const linked = new URLSearchParams(location.hash.slice(1)).get("problem");
  state.problem = data.problems.find((problem) => problem.id === linked) ?? null;
  list();
  state.isReady = true;
})();

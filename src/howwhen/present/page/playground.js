(() => {
  const service = JSON.parse(find("service").textContent);
  let running = null;

  const logProb = (nats) => (nats === null ? "none" : nats.toFixed(2));
  const quoted = (text) => (text === null ? "nothing" : JSON.stringify(text));

  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  }

  async function answer(pane, rung, question, signal) {
    const state = { pane, rung, count: 0, decisions: 0, used: new Map(), outcome: "" };
    const note = pane.querySelector(".why-grade");
    pane.querySelector(".who").textContent = rung;
    pane.setAttribute("aria-label", rung);
    pane.querySelector(".tokens").replaceChildren();
    note.textContent = "waiting";
    const strength = find("strength").value;
    const steers = rung !== "base" && rung !== "thinking" && strength !== "";
    const body = {
      model: `${service.model}/${rung}`, messages: [{ role: "user", content: question }], stream: true,
      temperature: Number(find("temperature").value || 0), howwhen: steers ? { strength: Number(strength) } : {},
    };
    const started = performance.now();
    try {
      const response = await fetch("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
      if (!response.ok) throw new Error((await response.json()).error.message);
      for await (const chunk of events(response)) {
        if (chunk.error) throw new Error(chunk.error.message);
        for (const token of chunk.howwhen?.tokens ?? []) show(state, token);
        const isCut = chunk.choices[0]?.finish_reason === "length";
        const seconds = ((performance.now() - started) / 1000).toFixed(1);
        const decisions = state.decisions ? `, ${several(state.decisions, "disagreement")}` : "";
        state.outcome = `${several(state.count, "token")}${decisions}, ${seconds} s${isCut ? ", stopped at the limit" : ""}`;
        note.textContent = state.outcome;
      }
    } catch (error) {
      const isStopped = error.name === "AbortError";
      state.outcome = isStopped ? `stopped after ${several(state.count, "token")}` : error.message;
      note.replaceChildren(make("span", { className: isStopped ? "" : "error", textContent: state.outcome }));
    }
    return state;
  }

  function show(state, token) {
    const place = state.count;
    state.count += 1;
    const tokens = state.pane.querySelector(".tokens");
    if (!token.is_decision) {
      tokens.append(plainToken(token.text, "", () => explain(state.rung, place, token)));
      return;
    }
    state.decisions += 1;
    if (token.category !== null) state.used.set(token.category, token.title);
    const options = { category: token.category, name: token.title, isKept: token.id === token.base_id, isFirst: state.decisions === 1 };
    tokens.append(disagreementButton(token.text, options, () => explain(state.rung, place, token)));
  }

  function explain(rung, place, token) {
    const rows = [["written", quoted(token.text)], ["base wanted", quoted(token.base)]];
    if (token.thinking !== null) rows.push(["thinking model wanted", quoted(token.thinking)]);
    if (token.category !== null) rows.push(["steered with", steering(token.category, token.title, token.strength, token.window)]);
    const thinking = token.thinking_log_prob === null ? "" : `, ${logProb(token.thinking_log_prob)} thinking model`;
    rows.push(["log-probability", `${logProb(token.base_log_prob)} base${thinking} (nats)`]);
    if (token.candidates.length) rows.push(["tried", token.candidates.map((candidate) => `${candidate.strength} on ${candidate.window}: ${quoted(candidate.text)} (${logProb(candidate.thinking_log_prob)})`).join("; ")]);
    showDetails(rung, place, token.is_decision, rows);
  }

  async function ask(event) {
    event.preventDefault();
    running = new AbortController();
    find("status").textContent = "Generating three answers.";
    find("ask").disabled = true;
    find("stop").disabled = false;
    find("legend").replaceChildren();
    find("why").replaceChildren("Choose a disagreement to see which model wanted what.");
    const question = find("question").value.trim();
    const rungs = { base: "base", thinking: "thinking", third: find("rung").value };
    const answers = await Promise.all(Object.entries(rungs).map(([pane, rung]) => answer(find(`pane-${pane}`), rung, question, running.signal)));
    find("status").textContent = answers.map(({ rung, outcome }) => `${rung}: ${outcome}`).join("; ");
    showLegend(answers.at(-1).used);
    find("ask").disabled = false;
    find("stop").disabled = true;
  }

  find("form").addEventListener("submit", ask);
  find("stop").addEventListener("click", () => running?.abort());
})();

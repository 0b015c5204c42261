// What the page does. What people or servers say is only ever put in as text, never as markup. All addresses are relative.

const MAX_TEXTS = 50;
const MAX_ERRORS = 20;
const TOP_K = 10;
const TYPING_PAUSE_MS = 250;
const REFRESH_MS = 10_000;
const KEY_NAME = "trunkline.key";

const byId = (id) => document.getElementById(id);

/** State of this page, in memory only: what is live, what is chosen, what was asked and what went wrong. */
const session = { heads: new Map(), chosen: new Map(), texts: [], errors: [], rows: new Map(), asking: null, compared: null, typing: 0 };

class Failure extends Error {
  constructor(status, code, message, requestId) {
    super(message);
    Object.assign(this, { status, code, requestId });
  }
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const percent = (score) => `${(100 * score).toFixed(1)}\u202f%`;
const milliseconds = (ms) => `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)}\u202fms`;
const precise = (value) => value.toPrecision(4).replace("-", "−");
const now = () => new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const counted = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

function bar(share) {
  const made = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
  setShare(made, share);
  return made;
}

function setShare(node, share) {
  node.firstElementChild.style.setProperty("--share", String(Math.min(Math.max(share, 0), 1)));
}

// ---- the gateway

async function call(path, body, signal) {
  const key = byId("key").value.trim();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? { headers, signal } : { method: "POST", body: JSON.stringify(body), headers, signal };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "unreachable", "The gateway cannot be reached.", "");
  }
  const requestId = response.headers.get("x-request-id") ?? "";
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return { answer, requestId };
  const said = answer?.error ?? {};
  const message = typeof said === "string" ? said : said.message;
  throw new Failure(response.status, said.code ?? "", message ?? `The gateway answered ${response.status}.`, said.request_id ?? requestId);
}

async function refresh() {
  try {
    const ready = await fetch("readyz");
    const said = await ready.json();
    tellService(ready.ok, ready.ok ? "Ready" : `Not ready: ${(said.reasons ?? []).join(", ") || "no reason given"}`);
    if (ready.ok) showHeads((await call("v1/heads")).answer.heads);
  } catch (error) {
    if (error instanceof Failure) tellService(false, error.status === 401 ? "Needs an API key" : error.message);
    else tellService(false, "The gateway cannot be reached");
  }
}

function tellService(isReady, text) {
  byId("service").className = `service ${isReady ? "ready" : "wrong"}`;
  setText(byId("service-text"), text);
}

// ---- heads

function showHeads(heads) {
  const before = JSON.stringify([...session.heads.values()]);
  session.heads = new Map(heads.map((head) => [head.name, head]));
  if (before === JSON.stringify(heads)) return;
  for (const head of heads) {
    if (!session.chosen.has(head.name)) session.chosen.set(head.name, head.default && !head.refused);
  }
  const chips = heads.map((head) => chip(head));
  byId("choices").replaceChildren(...(chips.length ? chips : [element("p", { class: "hint" }, "None is live yet.")]));
  layRows();
  offerVersions();
}

function chip(head) {
  const box = element("input", { type: "checkbox", name: "head", value: head.name });
  box.checked = session.chosen.get(head.name) && !head.refused;
  box.disabled = Boolean(head.refused);
  const label = element("label", head.refused ? { title: head.refused } : {}, box, element("span", {}, head.name));
  if (head.refused) label.append(element("em", { class: "unseen" }, ` cannot answer: ${head.refused}`));
  box.addEventListener("change", () => {
    session.chosen.set(head.name, box.checked);
    layRows();
    if (byId("live").checked) ask();
  });
  return label;
}

function chosenNames() {
  return [...session.heads.values()].filter((head) => session.chosen.get(head.name) && !head.refused).map((head) => head.name);
}

/** A row for each chosen head, there before its answer is, so that nothing moves when it comes. */
function layRows() {
  const wanted = chosenNames();
  for (const name of session.rows.keys()) if (!wanted.includes(name)) session.rows.delete(name);
  for (const name of wanted) if (!session.rows.has(name)) session.rows.set(name, makeRow(name));
  byId("rows").replaceChildren(...wanted.map((name) => session.rows.get(name).item));
}

function makeRow(name) {
  const parts = (tag) => {
    const version = element("span", { class: "version" });
    const found = { version, label: element("span", { class: "label" }, "–"), share: element("span", { class: "share" }), bar: bar(0) };
    const row = element(tag, { class: "row" }, element("span", { class: "name" }, name, " ", version), found.label, found.bar, found.share);
    return Object.assign(found, { row });
  };
  const plain = parts("div");
  plain.row.classList.add("waiting");
  setText(plain.version, versionText(session.heads.get(name)?.version));
  const full = parts("summary");
  const scores = element("ol", { class: "scores", "aria-label": `Scores of ${name}` });
  const details = element("details", { hidden: "" }, full.row, scores);
  return { item: element("li", { "data-head": name }, details, plain.row), plain, full, scores, details };
}

const versionText = (version) => (version === undefined || version === null ? "" : `v${version}`);

function showHead(name, said) {
  const row = session.rows.get(name);
  if (!row) return;
  row.details.hidden = Boolean(said.error);
  row.plain.row.hidden = !said.error;
  if (said.error) {
    row.plain.row.className = "row failed";
    row.plain.bar.hidden = true;
    setText(row.plain.label, said.error.message);
    return;
  }
  const head = session.heads.get(name) ?? {};
  const isValue = head.task === "regression";
  setText(row.full.version, versionText(said.version));
  setText(row.full.label, labelText(head, said));
  const score = said.score ?? said.confidence ?? 0;
  setText(row.full.share, isValue ? "" : percent(score));
  setShare(row.full.bar, isValue ? 0 : score);
  row.full.bar.style.visibility = isValue ? "hidden" : "";
  row.scores.replaceChildren(...scoreItems(head, said, isValue));
}

function labelText(head, said) {
  if (head.task === "regression") return precise(said.value ?? said.score);
  if (said.labels) return said.labels.join(", ") || "none";
  return said.label ?? "none";
}

function scoreItems(head, said, isValue) {
  const scores = Object.entries(said.scores ?? (isValue ? { value: said.value ?? said.score } : {})).sort((one, other) => other[1] - one[1]);
  const items = scores.map(([label, score]) =>
    element("li", {}, element("span", {}, label), isValue ? element("span") : bar(score), element("span", { class: "number" }, isValue ? precise(score) : percent(score))),
  );
  const rest = (head.labels?.length ?? 0) - scores.length;
  if (rest > 0) items.push(element("li", { class: "more" }, `and ${counted(rest, "label")} with less`));
  if (said.path) items.push(element("li", { class: "more path" }, said.path.join(" › ")));
  if (!isValue && said.confidence !== undefined && said.confidence !== said.score) {
    items.push(element("li", { class: "more confidence" }, `confidence in all of it ${percent(said.confidence)}`));
  }
  return items;
}

// ---- asking

async function ask() {
  const text = byId("text").value;
  if (!text.trim()) return tellStatus("Write a text first.", true);
  if (text !== session.compared) forgetComparison();
  const names = chosenNames();
  if (session.heads.size && !names.length) return tellStatus("Choose a head first.", true);
  session.asking?.abort();
  const asking = (session.asking = new AbortController());
  const slow = setTimeout(() => tellStatus("Asking…"), 200);
  byId("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const body = { text, scores: true, top_k: TOP_K, ...(names.length ? { heads: names } : {}) };
    const { answer, requestId } = await call("v1/classify", body, asking.signal);
    showAnswer(answer, requestId, performance.now() - started);
  } catch (error) {
    if (error.name === "AbortError") return;
    tellStatus(error.message, true);
    addError(error.message, error.code, error.status, error.requestId);
    if (error.status === 401) askForKey();
  } finally {
    clearTimeout(slow);
    if (session.asking === asking) {
      session.asking = null;
      byId("results").setAttribute("aria-busy", "false");
    }
  }
}

function showAnswer(answer, requestId, tripMs) {
  const [result] = answer.results;
  const said = Object.entries(result.heads);
  for (const [name, one] of said) {
    showHead(name, one);
    if (one.error) addError(one.error.message, one.error.code, "", requestId);
  }
  const failed = said.filter(([, one]) => one.error).length;
  const time = milliseconds(answer.timings.total_ms);
  tellStatus(`${counted(said.length - failed, "head")} answered in ${time}${failed ? `, ${failed} failed` : ""}.`, failed > 0);
  showStages(answer.timings);
  setText(byId("fact-tokens"), result.num_tokens.toLocaleString());
  setText(byId("fact-cut"), result.truncated ? "cut at its end" : "read whole");
  byId("fact-cut").className = result.truncated ? "cut" : "";
  setText(byId("fact-notes"), (result.notes ?? []).join(", ").replaceAll("_", " ") || "nothing");
  setText(byId("fact-cached"), result.cached ? "from the cache" : "computed");
  setText(byId("fact-trip"), milliseconds(tripMs));
  setText(byId("fact-trunk"), answer.trunk.name);
  byId("fact-trunk").title = answer.trunk.fingerprint;
  setText(byId("fact-request").firstElementChild, requestId || "–");
}

function tellStatus(text, isWrong = false) {
  byId("status").className = `status${isWrong ? " wrong" : ""}`;
  setText(byId("status"), text);
}

function showStages(timings) {
  const total = Math.max(timings.total_ms, 1e-6);
  let from = 0;
  for (const row of byId("stages").rows) {
    const stage = row.dataset.stage;
    const ms = timings[stage] ?? 0;
    const span = row.querySelector(".track span");
    span.style.setProperty("--from", String(stage === "total_ms" ? 0 : Math.min(from / total, 1)));
    span.style.setProperty("--share", String(Math.min(ms / total, 1)));
    setText(row.querySelector(".number"), milliseconds(ms));
    from += ms;
  }
  byId("stages").parentElement.classList.add("known");
}

// ---- two versions

function versionsOf(head) {
  const roles = (version) => ["stable", "canary", "shadow"].filter((role) => head[role] === version).join(", ");
  return head.versions.map((version) => ({ version, role: roles(version) }));
}

function offerVersions() {
  const several = [...session.heads.values()].filter((head) => !head.refused && versionsOf(head).length > 1);
  const heads = byId("compare-head");
  const before = heads.value;
  heads.replaceChildren(...several.map((head) => element("option", {}, head.name)));
  if (several.some((head) => head.name === before)) heads.value = before;
  for (const id of ["compare-head", "compare-a", "compare-b", "compare-submit"]) byId(id).disabled = !several.length;
  byId("compare-hint").hidden = several.length > 0;
  offerPair();
}

function offerPair() {
  const head = session.heads.get(byId("compare-head").value);
  const versions = head ? versionsOf(head) : [];
  const option = (one) => element("option", { value: String(one.version) }, `v${one.version}${one.role ? ` ${one.role}` : ""}`);
  for (const id of ["compare-a", "compare-b"]) byId(id).replaceChildren(...versions.map(option));
  const stable = versions.findIndex((one) => one.version === head.version);
  byId("compare-a").selectedIndex = Math.max(stable, 0);
  byId("compare-b").selectedIndex = versions.findIndex((_, place) => place !== Math.max(stable, 0));
}

async function compare() {
  const text = byId("text").value;
  const name = byId("compare-head").value;
  const names = [byId("compare-a").value, byId("compare-b").value].map((version) => `${name}@${version}`);
  if (!text.trim()) return tellComparison("Write a text first.", true);
  if (names[0] === names[1]) return tellComparison("Choose two different versions.", true);
  try {
    const { answer, requestId } = await call("v1/classify", { text, heads: names, scores: true });
    const said = names.map((one) => answer.results[0].heads[one]);
    const failed = said.find((one) => !one || one.error);
    if (failed !== undefined || said.includes(undefined)) {
      const message = failed?.error?.message ?? "The gateway did not answer for both versions.";
      addError(message, failed?.error?.code ?? "", "", requestId);
      return tellComparison(message, true);
    }
    session.compared = text;
    showComparison(name, said);
  } catch (error) {
    tellComparison(error.message, true);
    addError(error.message, error.code, error.status, error.requestId);
  }
}

/** An answer beside the comparison of another text would look as if they belonged together. */
function forgetComparison() {
  session.compared = null;
  byId("compare-scroll").hidden = true;
  byId("compare-rows").replaceChildren();
  tellComparison("");
}

function showComparison(name, [one, other]) {
  const head = session.heads.get(name) ?? {};
  for (const said of [one, other]) said.scores ??= { value: said.value ?? said.score };
  const labels = [...new Set([...Object.keys(one.scores), ...Object.keys(other.scores)])];
  const most = (label) => Math.max(one.scores[label] ?? 0, other.scores[label] ?? 0);
  labels.sort((left, right) => most(right) - most(left));
  setText(byId("compare-one"), versionText(one.version));
  setText(byId("compare-other"), versionText(other.version));
  byId("compare-rows").replaceChildren(...labels.slice(0, 2 * TOP_K).map((label) => comparisonRow(head, label, one, other)));
  byId("compare-scroll").hidden = false;
  const same = labelText(head, one) === labelText(head, other);
  tellComparison(same ? `Both say ${labelText(head, one)}.` : `${labelText(head, one)} becomes ${labelText(head, other)}.`);
}

function comparisonRow(head, label, one, other) {
  const isValue = head.task === "regression";
  const shown = (score) => (isValue ? precise(score) : percent(score));
  const cell = (answer, kind) => {
    const score = answer.scores[label] ?? 0;
    const isBest = answer.label === label ? " best" : "";
    return element("td", { class: kind + isBest }, element("div", { class: "pair" }, element("span", {}, shown(score)), isValue ? element("span") : bar(score)));
  };
  const change = (other.scores[label] ?? 0) - (one.scores[label] ?? 0);
  const sign = change > 0 ? "+" : change < 0 ? "−" : "±";
  const difference = isValue ? Math.abs(change).toPrecision(3) : (100 * Math.abs(change)).toFixed(1);
  return element("tr", {}, element("th", { scope: "row" }, label), cell(one, "one"), cell(other, "other"), element("td", { class: "number" }, sign + difference));
}

function tellComparison(text, isWrong = false) {
  byId("compare-status").className = `status${isWrong ? " wrong" : ""}`;
  setText(byId("compare-status"), text);
}

// ---- errors, texts, the key

function addError(message, code, status, requestId) {
  session.errors.unshift({ message, when: now(), about: [status || "", code, requestId && `request ${requestId}`].filter(Boolean).join(" · ") });
  session.errors.length = Math.min(session.errors.length, MAX_ERRORS);
  byId("no-errors").hidden = true;
  const items = session.errors.map((one) =>
    element("li", {}, element("p", { class: "what" }, one.message), element("p", { class: "when" }, `${one.when}${one.about ? ` · ${one.about}` : ""}`)),
  );
  byId("errors").replaceChildren(...items);
}

function remember(text) {
  if (!text.trim() || session.texts[0]?.text === text) return;
  session.texts = [{ text, when: now() }, ...session.texts.filter((one) => one.text !== text)].slice(0, MAX_TEXTS);
  showTexts();
}

function showTexts() {
  const items = session.texts.map((one) => {
    const said = element("span", { class: "said" }, one.text.slice(0, 200).replace(/\s+/g, " "));
    const button = element("button", { type: "button" }, said, element("span", { class: "when" }, one.when));
    button.addEventListener("click", () => {
      setTextarea(one.text);
      ask();
    });
    return element("li", {}, button);
  });
  byId("history").replaceChildren(...items);
  byId("no-history").hidden = items.length > 0;
  byId("forget").disabled = !items.length;
}

function setTextarea(text) {
  byId("text").value = text;
  tellLength();
  byId("text").focus();
}

function tellLength() {
  setText(byId("text-length"), counted([...byId("text").value].length, "character"));
}

function askForKey() {
  byId("key-box").open = true;
  byId("key").focus();
}

/** The key stays in this page's memory, unless it is asked to outlive a reload; the browser forgets that with the tab. */
function keepKey() {
  const key = byId("key").value.trim();
  setText(byId("key-state"), key ? "set" : "none");
  if (key && byId("key-keep").checked) sessionStorage.setItem(KEY_NAME, key);
  else sessionStorage.removeItem(KEY_NAME);
}

function recallKey() {
  const kept = sessionStorage.getItem(KEY_NAME);
  if (kept) {
    byId("key").value = kept;
    byId("key-keep").checked = true;
    keepKey();
  }
}

// ---- beginning

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  remember(byId("text").value);
  ask();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("text").addEventListener("input", () => {
  tellLength();
  clearTimeout(session.typing);
  if (byId("live").checked && byId("text").value.trim()) session.typing = setTimeout(ask, TYPING_PAUSE_MS);
});
byId("text").addEventListener("change", () => byId("live").checked && remember(byId("text").value));
byId("live").addEventListener("change", () => byId("live").checked && byId("text").value.trim() && ask());
byId("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
byId("compare-head").addEventListener("change", offerPair);
byId("forget").addEventListener("click", () => {
  session.texts = [];
  showTexts();
  byId("text").focus();
});
byId("key").addEventListener("change", () => {
  keepKey();
  refresh();
});
byId("key-form").addEventListener("submit", (event) => event.preventDefault());
byId("key-keep").addEventListener("change", keepKey);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
setInterval(() => document.visibilityState === "visible" && refresh(), REFRESH_MS);

recallKey();
tellLength();
refresh();

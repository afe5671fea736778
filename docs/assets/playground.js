// The playground's two networks: docs/playground.md. site.js imports this module where a page has a panel of it.
// The first half is arithmetic, which tests/test_playground.py holds to rnnkit's; the second half is the panels.

// --- arithmetic -----------------------------------------------------------------------------------------------------

// A float16 as a number. DataView.getFloat16 is younger than some browsers.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// The tensors and the texts of a file in the format of safetensors: https://github.com/huggingface/safetensors
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__: texts, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {}, said = {};
  for (const [name, text] of Object.entries(texts)) said[name] = JSON.parse(text);
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    const bytes = buffer.slice(8 + length + start, 8 + length + end);
    const data = dtype === "F16" ? Float32Array.from(new Uint16Array(bytes), half) : new Float32Array(bytes);
    tensors[name] = { shape, data };
  }
  return { tensors, said };
}

// b + W x
function linear(weight, bias, x) {
  const [rows, columns] = weight.shape, y = new Float64Array(rows);
  for (let i = 0, at = 0; i < rows; i++) {
    let sum = bias.data[i];
    for (let j = 0; j < columns; j++) sum += weight.data[at++] * x[j];
    y[i] = sum;
  }
  return y;
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// One step of nn.LSTM with one layer, for one sequence. The gates stand in PyTorch's order: i, f, g, o.
class LSTM {
  constructor(tensors, prefix) {
    const part = (name) => tensors[`${prefix}.${name}_l0`];
    this.input = [part("weight_ih"), part("bias_ih")];
    this.recurrent = [part("weight_hh"), part("bias_hh")];
    this.size = part("weight_hh").shape[1];
  }

  start() {
    return { h: new Float64Array(this.size), c: new Float64Array(this.size) };
  }

  step(x, state) {
    const a = linear(...this.input, x), b = linear(...this.recurrent, state.h), n = this.size, next = this.start();
    for (let k = 0; k < n; k++) {
      const gate = (which) => a[which * n + k] + b[which * n + k];
      next.c[k] = sigmoid(gate(1)) * state.c[k] + sigmoid(gate(0)) * Math.tanh(gate(2));
      next.h[k] = sigmoid(gate(3)) * Math.tanh(next.c[k]);
    }
    return next;
  }
}

// The network of tutorial 04: embedding, LSTM, linear layer. Each call reads one character.
export class Writer {
  constructor(buffer) {
    const { tensors, said } = readTensors(buffer);
    this.alphabet = said.alphabet;
    this.number = new Map(this.alphabet.map((character, i) => [character, i]));
    this.embedding = tensors["0.weight"];
    this.lstm = new LSTM(tensors, "1");
    this.head = [tensors["2.weight"], tensors["2.bias"]];
  }

  // A line break and its indent are one character, as `fold` of the tutorial makes it: chr(1) is one indent.
  encode(text) {
    for (let depth = 8; depth > 0; depth--) {
      text = text.replaceAll("\n" + "    ".repeat(depth), String.fromCharCode(depth));
    }
    return Array.from(text, (character) => this.number.get(character) ?? this.number.get("?"));
  }

  decode(tokens) {
    const spaces = (character) => (character >= "\x01" && character <= "\x08" ? "\n" + "    ".repeat(character.charCodeAt(0)) : character);
    return tokens.map((token) => spaces(this.alphabet[token])).join("");
  }

  step(token, state = this.lstm.start()) {
    const width = this.embedding.shape[1];
    state = this.lstm.step(this.embedding.data.subarray(token * width, (token + 1) * width), state);
    return { logits: linear(...this.head, state.h), state };
  }

  read(tokens) {
    let now = { logits: null, state: undefined };
    for (const token of tokens) now = this.step(token, now.state);
    return now;
  }
}

// SoftmaxSampler(temperature, top_k, top_p, min_p).probabilities: each cut on what the one before left, renormalized.
export function probabilities(logits, { temperature = 1, topK = null, topP = null, minP = null } = {}) {
  const highest = Math.max(...logits);
  let p = scaled(Array.from(logits, (logit) => Math.exp((logit - highest) / temperature)));
  const ranked = () => [...p.keys()].sort((a, b) => p[b] - p[a]);
  if (topK !== null && topK < p.length) {
    const kept = new Set(ranked().slice(0, topK));
    p = scaled(p.map((value, i) => (kept.has(i) ? value : 0)));
  }
  if (topP !== null && topP < 1) {
    let before = 0;  // the sum of the likelier ones
    const kept = new Set();
    for (const i of ranked()) {
      if (before < topP * (1 - 8 * 2 ** -23)) kept.add(i);  // the rounding that rnnkit allows a sum in float32
      before += p[i];
    }
    p = scaled(p.map((value, i) => (kept.has(i) ? value : 0)));
  }
  if (minP !== null) {
    const least = minP * Math.max(...p);
    p = scaled(p.map((value) => (value >= least ? value : 0)));
  }
  return p;
}

function scaled(values) {
  const sum = values.reduce((a, b) => a + b, 0);
  return values.map((value) => value / sum);
}

// Numbers in [0, 1) that a seed repeats: mulberry32, by Tommy Ettinger, public domain.
export function uniform(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// A class, drawn by its probability.
export function draw(p, random) {
  let left = random();
  let last = 0;
  for (let i = 0; i < p.length; i++) {
    if (p[i] === 0) continue;
    last = i;
    left -= p[i];
    if (left < 0) break;
  }
  return last;  // where the sum of all is below 1 by a rounding, the last that is possible
}

// The network of tutorial 08: LSTM and linear layer, one number in and one out.
export class Forecaster {
  constructor(buffer) {
    const { tensors } = readTensors(buffer);
    this.lstm = new LSTM(tensors, "0");
    this.head = [tensors["1.weight"], tensors["1.bias"]];
    [this.mean] = tensors.mean.data;
    [this.std] = tensors.std.data;
    const [length, count] = tensors.runs.shape;  // standardized, a column for each run
    this.runs = Array.from({ length: count }, (_, run) =>
      Array.from({ length }, (_, t) => tensors.runs.data[t * count + run]));
  }

  // BPTTValidationPhase(nfeedback): the outputs for all values of a run but the last, the final ones fed by themselves.
  validate(run, nfeedback) {
    const values = this.runs[run], steps = values.length - 1, outputs = [];
    let state = this.lstm.start();
    for (let t = 0; t < steps; t++) {
      const fed = t < steps - nfeedback ? values[t] : outputs[t - 1];
      state = this.lstm.step([fed], state);
      outputs.push(linear(...this.head, state.h)[0]);
    }
    return outputs;
  }
}

// --- what both panels do --------------------------------------------------------------------------------------------

const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);

// A file of this site, by its address from the page.
async function file(path) {
  const answer = await fetch(new URL(path, location.href.replace(/[?#].*/, "")));
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer.arrayBuffer();
}

// A panel's file is asked for when the panel is near the window, or has the focus. The panel takes the place of the
// sample before it.
function panel(root, use) {
  const sample = root.previousElementSibling;
  const load = async () => {
    watch.disconnect();
    root.removeEventListener("focusin", load);
    try {
      use(root, await file(root.dataset.file));
      root.dataset.ready = "";
    } catch (error) {
      sample.hidden = false;
      root.querySelector("[role=status]").textContent = `What this panel needs could not be loaded: ${error.message}.`;
    }
  };
  const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && load(), { rootMargin: "300px" });
  root.hidden = false;
  sample.hidden = true;
  watch.observe(root);
  root.addEventListener("focusin", load);
}

const named = (root) => (name) => root.querySelector(`[data-play="${name}"]`);

// A slider says its value beside it, and to a screen reader; `words` says it where a number does not.
function slider(input, words, changed) {
  const show = () => {
    const said = words(input.valueAsNumber);
    input.setAttribute("aria-valuetext", said);
    input.nextElementSibling.firstChild.data = said;
  };
  input.addEventListener("input", () => { show(); changed(); });
  show();
}

// --- the writer -----------------------------------------------------------------------------------------------------

const SHOWN = 12, WRITTEN = 400;

function spoken(character) {
  if (character === " ") return "space";
  if (character === "\n") return "new line";
  if (character < " ") return `new line, indent ${character.charCodeAt(0)}`;
  return character;
}

// One bar a number, up or down from the middle; `most` reaches the edge.
function bars(numbers, most) {
  const up = (number) => (20 - 20 * Math.max(-1, Math.min(1, number / most))).toFixed(1);
  return Array.from(numbers, (number, i) => `M${2 * i + 1} 20V${up(number)}`).join("");
}

function writer(root, model) {
  const get = named(root);
  const primer = get("primer");
  const text = get("text");
  const said = get("said");
  const write = get("write");
  const rows = Array.from({ length: SHOWN }, () => {
    const row = root.querySelector("tbody").insertRow();
    row.innerHTML = '<th scope="row">–</th><td>–</td><td aria-hidden="true"><span class="rk-share"></span></td>';
    return { row, name: row.cells[0].firstChild, p: row.cells[1].firstChild, bar: row.cells[2].firstElementChild };
  });
  let now;  // the logits of the next character, and the state
  let tokens;  // what was written after the primer
  let random;
  let timer = 0;  // of the next frame, while it writes

  function settings() {
    const value = (name) => get(name).valueAsNumber;
    return {
      temperature: value("temperature"),
      topK: value("top-k") < model.alphabet.length ? value("top-k") : null,
      topP: value("top-p") < 1 ? value("top-p") : null,
      minP: value("min-p") > 0 ? value("min-p") : null,
    };
  }

  // From the primer alone, with the seed as it stands.
  function restart() {
    stop();
    now = model.read(model.encode(primer.value));
    tokens = [];
    random = uniform(get("seed").valueAsNumber || 0);
    show();
  }

  // Draws one character and reads it.
  function one() {
    const p = probabilities(now.logits, settings()), token = draw(p, random);
    tokens.push(token);
    now = model.step(token, now.state);
    return { token, p: p[token] };
  }

  function show() {
    get("read").firstChild.data = primer.value;
    get("written").firstChild.data = model.decode(tokens);
    text.scrollTop = text.scrollHeight;
    const p = now.logits ? probabilities(now.logits, settings()) : [];
    const order = [...p.keys()].sort((a, b) => p[b] - p[a] || now.logits[b] - now.logits[a]);
    rows.forEach(({ row, name, p: cell, bar }, i) => {
      row.hidden = i >= order.length;
      if (row.hidden) return;
      name.data = spoken(model.alphabet[order[i]]);
      cell.data = p[order[i]] ? percent(p[order[i]]) : "cut";
      bar.style.setProperty("--share", p[order[i]]);
    });
    const kept = p.filter((value) => value > 0).length;
    get("kept").firstChild.data = `${kept} of ${model.alphabet.length} are possible`;
    const state = now.state ?? model.lstm.start();
    get("h").setAttribute("d", bars(state.h, 1));
    get("c").setAttribute("d", bars(state.c, 20));
  }

  // To a screen reader, once the text stands still.
  function say(what) {
    const p = probabilities(now.logits, settings());
    const best = p.indexOf(Math.max(...p));
    said.textContent = `${what} The likeliest next: ${spoken(model.alphabet[best])}, ${percent(p[best])}.`;
  }

  function refuse() {
    if (now.logits) return false;
    said.textContent = "Type a primer of at least one character.";
    return true;
  }

  function stop() {
    cancelAnimationFrame(timer);
    timer = 0;
    write.firstChild.data = `Write ${WRITTEN} characters`;
  }

  // Writes on: at a pace, in characters a second, or all at once. A frame catches up with what is due.
  function run() {
    const pace = Number(get("pace").value);
    const first = tokens.length;
    const begin = performance.now();
    const until = (goal) => {
      while (tokens.length < goal) one();
      show();
      if (tokens.length < first + WRITTEN) return false;
      stop();
      say(`Wrote ${WRITTEN} characters.`);
      return true;
    };
    const frame = (time) => {
      if (!root.isConnected) return;  // the reader has gone to another page
      const due = Math.floor((Math.max(0, time - begin) / 1000) * pace);
      if (!until(first + Math.min(due, WRITTEN))) timer = requestAnimationFrame(frame);
    };
    if (!pace) return until(first + WRITTEN);
    write.firstChild.data = "Stop";
    timer = requestAnimationFrame(frame);
  }

  // Who asks for less motion gets the text at once, and may choose otherwise.
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) get("pace").value = "0";
  get("top-k").max = get("top-k").value = model.alphabet.length;
  slider(get("temperature"), String, show);
  slider(get("top-k"), (k) => (k < model.alphabet.length ? String(k) : "off"), show);
  slider(get("top-p"), (p) => (p < 1 ? String(p) : "off"), show);
  slider(get("min-p"), (p) => (p > 0 ? String(p) : "off"), show);
  primer.addEventListener("input", restart);
  get("seed").addEventListener("input", restart);
  write.addEventListener("click", () => {
    if (timer) {
      stop();
      say(`Stopped after ${tokens.length} characters.`);
    } else if (!refuse()) {
      run();
    }
  });
  get("one").addEventListener("click", () => {
    stop();
    if (refuse()) return;
    const { token, p } = one();
    show();
    say(`Drawn: ${spoken(model.alphabet[token])}, which had ${percent(p)}.`);
  });
  get("again").addEventListener("click", () => {
    restart();
    if (!refuse()) say("Back to the primer.");
  });
  restart();
}

// --- the forecaster -------------------------------------------------------------------------------------------------

const LEFT_OUT = 100, PLOTTED = 500, HIGH = 200;  // steps without a loss, steps drawn, the height of the drawing

function forecaster(root, model) {
  const get = named(root);
  const run = get("run");
  const nfeedback = get("nfeedback");
  const steps = model.runs[0].length - 1;
  let waiting = 0;

  function curve(values, start) {
    const y = (value) => ((2.5 - value) * (HIGH / 5)).toFixed(1);  // from 2.5 deviations to -2.5
    return values.map((value, i) => `${i ? "L" : "M"}${start + i} ${y(value)}`).join("");
  }

  function show() {
    const n = nfeedback.valueAsNumber;
    const targets = model.runs[run.valueAsNumber - 1].slice(1);
    const outputs = model.validate(run.valueAsNumber - 1, n);
    const squares = outputs.map((output, t) => (output - targets[t]) ** 2);
    const mean = (part) => part.reduce((a, b) => a + b, 0) / part.length;
    const open = mean(squares.slice(LEFT_OUT, steps - n));
    const closed = n ? mean(squares.slice(steps - n)) : null;

    const first = steps - PLOTTED;
    const loop = PLOTTED - n;  // where it closes in the drawing
    get("truth").setAttribute("d", curve(targets.slice(first), 0));
    get("driven").setAttribute("d", curve(outputs.slice(first, first + loop), 0));
    get("fed").setAttribute("d", n ? curve(outputs.slice(steps - n - 1), loop - 1) : "");
    get("closes").setAttribute("d", n ? `M${loop - 0.5} 0V${HIGH}` : "");

    get("open").firstChild.data = short(open);
    get("closed").firstChild.data = short(closed);
    root.querySelectorAll("tbody tr").forEach((row) => {
      const horizon = Number(row.cells[0].textContent);
      const t = steps - n + horizon - 2;  // horizon 1 is the last driven step
      const pair = [targets[t], outputs[t]].map((value) => value * model.std + model.mean);
      const texts = horizon <= n + 1 ? [...pair, pair[1] - pair[0]].map((value) => value.toFixed(3)) : ["–", "–", "–"];
      texts.forEach((said, i) => { row.cells[i + 1].firstChild.data = said; });
    });
    return `Run ${run.value}, nfeedback ${n}: open loss ${short(open)}, closed loss ${short(closed)}.`;
  }

  function short(number) {
    if (number === null) return "none";
    return number < 0.001 ? number.toExponential(1) : number.toPrecision(2);
  }

  // The drawing follows the slider; a screen reader is told once it rests.
  function changed() {
    const words = show();
    clearTimeout(waiting);
    waiting = setTimeout(() => { get("said").textContent = words; }, 600);
  }

  run.max = model.runs.length;
  nfeedback.max = PLOTTED;
  slider(run, String, changed);
  slider(nfeedback, String, changed);
  show();
}

// --- a pattern, step by step ------------------------------------------------------------------------------------------

// Where docs/_hooks/patterns.py puts the first column, from one to the next, and how many there are.
const LEFT = 84, GAP = 56, STEPS = 5;

// The columns of a drawing, in words. Its rows are named at its left edge; a dashed disc is an input that is fed.
function columns(drawing) {
  const at = (node, name) => Number(node.getAttribute(name));
  const texts = [...drawing.querySelectorAll("text")];
  const rows = texts.filter((node) => at(node, "x") === 8);
  const fed = [...drawing.querySelectorAll("circle[stroke-dasharray]")].map((node) => at(node, "cx"));
  const paths = [...drawing.querySelectorAll("path")].map((node) => node.getAttribute("d"));
  return Array.from({ length: STEPS }, (_, t) => {
    const x = LEFT + t * GAP;
    const said = [];
    for (const row of rows.toReversed()) {  // from the input up
      const cell = texts.find((node) => at(node, "x") === x && at(node, "y") === at(row, "y"));
      if (cell) said.push(`${row.textContent} ${cell.textContent}`);
    }
    if (fed.includes(x)) said.push("its input comes from the output before");
    if (paths.some((d) => d.startsWith(`M${x} `) && d.includes("l11 11l-11 11"))) said.push("it has a loss");
    if (paths.some((d) => d.startsWith(`M${x + GAP / 2 - 8} `) && d.includes("l5 -18m0"))) said.push("after it the state is cut");
    return `Step ${t + 1} of ${STEPS}: ${said.join(", ")}.`;
  });
}

function pattern(root, first) {
  const get = named(root);
  const step = get("step");
  const which = get("which");
  let drawing;
  let words;  // of each step

  // What begins right of the step's column has not happened yet: the arrows out of it, and the next columns.
  function show() {
    const edge = LEFT + (step.valueAsNumber - 1) * GAP + 14;
    for (const node of drawing.querySelectorAll(":scope > :is(path, circle, rect, text)")) {
      node.classList.toggle("rk-later", node.getBBox().x > edge);
    }
    get("said").textContent = words[step.valueAsNumber - 1];
  }

  function hold(bytes) {
    const svg = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml").documentElement;
    drawing = document.importNode(svg, true);
    words = columns(drawing);
    get("drawing").replaceChildren(drawing);
    show();
  }

  which.addEventListener("change", async () => hold(await file(which.value)));
  hold(first);
  slider(step, (t) => `${t} of ${STEPS}`, show);
}

// --- the page -------------------------------------------------------------------------------------------------------

// Called by site.js at each view of a page that has panels.
export function start(page) {
  const panels = {
    writer: (root, bytes) => writer(root, new Writer(bytes)),
    forecaster: (root, bytes) => forecaster(root, new Forecaster(bytes)),
    pattern,
  };
  for (const root of page.querySelectorAll(".rk-play[hidden]")) panel(root, panels[root.dataset.panel]);
}

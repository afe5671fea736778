// Plays with the playground in Chromium and prints, as JSON, what it computed, showed, asked for and took.
// stdin: {executable, axe, url of the site, cases: [{primer, settings}], runs: [[run, nfeedback]], ui: {primer}}
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { executable, axe, url, cases, runs, ui } = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({ executablePath: executable, args: ["--no-sandbox", "--disable-gpu"] });
const requests = [], problems = [];

async function open(path, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage(), asked = [];
  page.on("request", (request) => { requests.push(request.url()); asked.push(request.url()); });
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  page.on("console", (line) => line.type() === "error" && problems.push(`console: ${line.text()}`));
  await page.goto(url + path, { waitUntil: "networkidle" });
  return { context, page, asked };
}

const ready = (page, panel) => page.waitForSelector(`[data-panel=${panel}][data-ready]`, { timeout: 20_000 });
const said = (page, panel) => page.locator(`[data-panel=${panel}] [role=status]`).textContent();
const written = (page) => page.locator("[data-play=written]").evaluate((node) => node.textContent);
const chosen = (page) => page.evaluate(() => document.activeElement.dataset.play ?? "");
const result = {};

// The arithmetic, without the panels.
{
  const { context, page } = await open("playground/");
  result.arithmetic = await page.evaluate(async ({ url, cases, runs }) => {
    const { Writer, Forecaster, probabilities } = await import(`${url}assets/playground.js`);
    const file = async (name) => (await fetch(`${url}playground/${name}.safetensors`)).arrayBuffer();
    const writer = new Writer(await file("writer")), forecaster = new Forecaster(await file("forecaster"));
    const begin = performance.now();
    let now = writer.read([0]);
    for (let i = 0; i < 500; i++) now = writer.step(probabilities(now.logits).indexOf(Math.max(...probabilities(now.logits))), now.state);
    const rate = 500 / ((performance.now() - begin) / 1000);
    return {
      rate,
      probabilities: cases.map(({ primer, settings }) => probabilities(writer.read(writer.encode(primer)).logits, settings)),
      decoded: cases.map(({ primer }) => writer.decode(writer.encode(primer))),
      forecasts: runs.map(([run, nfeedback]) => forecaster.validate(run, nfeedback)),
    };
  }, { url, cases, runs });
  await context.close();
}

// What is asked for: nothing on another page; each model once its panel is near.
{
  const models = (asked) => asked.map((one) => one.split("/").pop()).filter((name) => /safetensors|playground\.js/.test(name));
  const { context, page, asked } = await open("", { viewport: { width: 1280, height: 500 } });
  const elsewhere = models(asked);
  asked.length = 0;
  await page.goto(`${url}playground/`, { waitUntil: "networkidle" });
  await ready(page, "writer");
  await page.waitForTimeout(300);
  const first = models(asked);
  await page.locator("[data-panel=forecaster]").scrollIntoViewIfNeeded();
  await ready(page, "forecaster");
  result.asked = { elsewhere, first, both: models(asked) };
  await context.close();
}

// By keyboard alone: from the primer by Tab, each control used on the way.
{
  const { context, page } = await open("playground/", { reducedMotion: "reduce" });
  await ready(page, "writer");
  const stops = [], press = async (key, times = 1) => { for (let i = 0; i < times; i++) await page.keyboard.press(key); };
  const next = async () => { await press("Tab"); stops.push(await chosen(page)); };
  for (let i = 0; i < 200 && (await chosen(page)) !== "primer"; i++) await press("Tab");
  stops.push(await chosen(page));
  await press("Control+A");
  await page.keyboard.type(ui.primer);
  await next(); await press("ArrowRight", 4);   // temperature: 0.6 and four times 0.05
  await next(); await press("Home"); await press("ArrowRight", 19);  // top-k 20
  await next(); await press("ArrowLeft", 2);    // top-p 0.9
  await next(); await press("ArrowRight", 1);   // min-p 0.02
  const spoken = await page.evaluate(() => [...document.querySelectorAll("[data-panel=writer] [type=range]")].map(
    (input) => [input.labels[0].textContent, input.getAttribute("aria-valuetext")]));
  const table = await page.evaluate(() => [...document.querySelectorAll("[data-panel=writer] tbody tr")].map(
    (row) => [...row.cells].slice(0, 2).map((cell) => cell.textContent)));
  const kept = await page.locator("[data-play=kept]").textContent();
  const state = await page.locator("[data-play=h]").getAttribute("d");
  await next();
  const pace = await page.locator("[data-play=pace]").inputValue();
  await next();  // seed
  await next(); await press("Enter");
  const all = { text: await written(page), said: await said(page, "writer") };
  const moved = (await page.locator("[data-play=h]").getAttribute("d")) !== state;
  await next(); await press("Enter");
  const one = { text: await written(page), said: await said(page, "writer") };
  await next(); await press("Enter");
  const again = { text: await written(page), said: await said(page, "writer") };
  await page.locator("[data-play=write]").press("Enter");
  const repeated = await written(page);
  await page.locator("[data-play=again]").focus();
  await next();  // the text, which scrolls
  for (let i = 0; i < 20 && (await chosen(page)) !== "nfeedback"; i++) await press("Tab");
  stops.push(await chosen(page));
  await ready(page, "forecaster");
  await press("ArrowRight", 2);
  await next(); await press("ArrowRight", 2);
  await page.waitForFunction(() => document.querySelector("[data-panel=forecaster] [role=status]").textContent);
  const forecast = await page.evaluate(() => ({
    open: document.querySelector("[data-play=open]").textContent,
    closed: document.querySelector("[data-play=closed]").textContent,
    rows: [...document.querySelectorAll("[data-panel=forecaster] tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)),
  }));
  forecast.said = await said(page, "forecaster");
  for (let i = 0; i < 20 && (await chosen(page)) !== "which"; i++) await press("Tab");
  stops.push(await chosen(page));
  await ready(page, "pattern");
  await next();
  const later = () => page.locator("[data-panel=pattern] .rk-later").count();
  const walk = [[await said(page, "pattern"), await later()]];
  for (let i = 1; i < 5; i++) {
    await press("ArrowRight");
    walk.push([await said(page, "pattern"), await later()]);
  }
  const others = {};
  for (const name of await page.locator("[data-play=which] option").allTextContents()) {
    await page.locator("[data-play=which]").selectOption({ label: name });
    await page.waitForTimeout(200);  // the drawing comes from the server
    others[name] = await said(page, "pattern");
  }
  await page.locator("[data-play=primer]").fill("");
  await page.locator("[data-play=one]").press("Enter");
  const empty = await said(page, "writer");
  result.keyboard = { stops, spoken, table, kept, pace, all, moved, one, again, repeated, forecast, walk, others, empty };
  await context.close();
}

// As it runs, with motion: how many characters a second are drawn and shown.
{
  const { context, page } = await open("playground/", { reducedMotion: "no-preference" });
  await ready(page, "writer");
  const pace = await page.locator("[data-play=pace]").inputValue();
  await page.evaluate(() => {
    window.shown = [];
    const note = () => window.shown.push(performance.now());
    document.querySelector("[data-play=write]").addEventListener("click", note, { capture: true, once: true });
    new MutationObserver(note).observe(document.querySelector("[data-play=written]"), { characterData: true, subtree: true });
  });
  await page.locator("[data-play=write]").press("Enter");
  await page.waitForFunction(() => /^Wrote/.test(document.querySelector("[data-panel=writer] [role=status]").textContent), null, { timeout: 30_000 });
  const [first, last, steps] = await page.evaluate(() => [window.shown[0], window.shown.at(-1), window.shown.length]);
  result.motion = { pace, rate: (400 / (last - first)) * 1000, steps };
  await page.locator("[data-play=write]").press("Enter");
  await page.waitForTimeout(300);
  await page.locator("[data-play=write]").press("Enter");
  const stopped = await written(page);
  await page.waitForTimeout(300);
  result.motion.stays = (await written(page)) === stopped;
  await context.close();
}

// All panels in use, as axe-core sees them.
result.violations = [];
{
  const { context, page } = await open("playground/", { reducedMotion: "reduce" });
  for (const name of ["forecaster", "pattern"]) {
    await page.locator(`[data-panel=${name}]`).scrollIntoViewIfNeeded();
    await ready(page, name);
  }
  await page.locator("[data-play=write]").press("Enter");
  await page.addScriptTag({ path: axe });
  for (const colorScheme of ["light", "dark"]) for (const width of [1280, 390]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height: 900 });
    await page.waitForTimeout(300);
    const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    result.violations.push(...violations.map((v) => `${colorScheme} ${width} ${v.id}: ${v.nodes.slice(0, 3).map((n) => n.target).join(" | ")}`));
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    if (over > 0) result.violations.push(`${colorScheme} ${width} scrolls sideways by ${over}`);
  }
  await context.close();
}

// Without JavaScript, and where a model cannot be had.
{
  const { context, page } = await open("playground/", { javaScriptEnabled: false });
  result.still = {
    text: await page.locator(".rk-sample pre").first().innerText(),
    pictures: await page.locator(".rk-sample img").count(),
    panels: await page.locator(".rk-play:visible").count(),
  };
  await context.close();
}
{
  const context = await browser.newContext(), page = await context.newPage();
  await page.route("**/*.safetensors", (route) => route.fulfill({ status: 503, body: "" }));
  await page.goto(`${url}playground/`, { waitUntil: "networkidle" });
  result.failed = { said: await said(page, "writer"), sample: await page.locator(".rk-sample").first().isVisible() };
  await context.close();
}

await browser.close();
process.stdout.write(JSON.stringify({ ...result, requests, problems }));

// Visits pages in Chromium and prints, as JSON, what each asked for, what went wrong, and what axe-core found.
// stdin: {executable, axe, pages: [{name, url, views: [{scheme, width, screenshot?}]}], tour: url of the home page,
// queries: what is typed into the search, loads: [{name, url, widths}] to see what a first load brings and moves}
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { executable, axe, pages, tour, queries, loads = [] } = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: executable,
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});

async function open(url) {
  const context = await browser.newContext({ reducedMotion: "reduce", viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  const requests = [], problems = [];
  page.on("request", (request) => requests.push(request.url()));
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  page.on("console", (line) => line.type() === "error" && problems.push(`console: ${line.text()}`));
  await page.goto(url, { waitUntil: "networkidle" });
  return { context, page, requests, problems };
}

async function facts() {
  const light = (color) => color.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255).reduce(
    (sum, part, i) => sum + [0.2126, 0.7152, 0.0722][i] * (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4), 0);
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const code = (root) => [...root.querySelectorAll(":is(.input, .language-python:not(.doc-signature)).highlight code")];
  const served = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  // Whether a block's copy button lies on its code.
  const covered = (pre) => {
    const button = pre.querySelector(".md-code__button"), text = document.createRange();
    if (!button || !button.checkVisibility()) return false;
    const b = button.getBoundingClientRect();
    text.selectNodeContents(pre.querySelector("code"));
    return [...text.getClientRects()].some(
      (r) => r.width && r.left < b.right && r.right > b.left && r.top < b.bottom && r.bottom > b.top);
  };
  // The words of code in tables that end on another line than they begin on, without a joint: "target/s".
  const broken = [...document.querySelectorAll("table:not([class]) code")].filter((node) => {
    if (!node.checkVisibility() || node.closest("p.claims + *")) return false;
    const text = [], range = document.createRange(), walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) [...walker.currentNode.data].forEach((letter, i) => text.push([letter, walker.currentNode, i]));
    const top = ([, part, i]) => (range.setStart(part, i), range.setEnd(part, i + 1), range.getBoundingClientRect().top);
    return text.some((one, i) => i && /\w/.test(one[0]) && /\w/.test(text[i - 1][0]) && top(one) > top(text[i - 1]) + 4);
  });
  const left = [...document.querySelectorAll(".arithmatex")].filter((node) => !node.querySelector(".katex-html"));
  return {
    scheme: document.body.getAttribute("data-md-color-scheme"),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    plain: code(document).filter((node) => /^import /m.test(node.textContent) && !node.querySelector(".k")).length,
    recolored: code(document).map((n) => n.textContent).join() === code(served).map((n) => n.textContent).join(),
    math: left.length + document.querySelectorAll(".katex-error").length,
    copied: document.querySelectorAll(".output .md-code__button").length,
    broken: broken.map((node) => node.textContent),
    faint: [...document.querySelectorAll(".md-code__button")].filter((node) => {
      const paper = getComputedStyle(node.closest(".md-code__nav")).backgroundColor;
      return node.checkVisibility() && contrast(getComputedStyle(node, "::after").backgroundColor, paper) < 3;
    }).length,
    indent: Math.max(0, ...[...document.querySelectorAll("article dl:not([class]) > dd")].map(
      (node) => node.offsetLeft - node.parentElement.offsetLeft + parseFloat(getComputedStyle(node).paddingLeft))),
    narrow: Math.min(9999, ...[...document.querySelectorAll(".rk-cards td")].map((node) => node.clientWidth)),
    covered: [...document.querySelectorAll(".input.highlight pre")].filter(covered).length,
    unreachable: [...document.querySelectorAll("pre > code, .md-typeset__scrollwrap, div.arithmatex")].filter(
      (node) => node.scrollWidth > node.clientWidth && node.tabIndex !== 0).length,
  };
}

async function check(page) {
  if (!(await page.evaluate(() => "axe" in window))) await page.addScriptTag({ path: axe });
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.target).join(" | ")}`);
}

// A figure by keyboard: Enter opens it over the page, Escape closes it, and the focus is where it was. Or nothing.
async function enlarge(page) {
  const link = page.locator("a.enlarge:visible").first();
  if (!(await link.count())) return null;
  await link.focus();
  await page.keyboard.press("Enter");
  await page.waitForSelector("dialog.rk-large[open] img", { timeout: 5_000 });
  const violations = await check(page);
  const wide = await page.evaluate(() => document.querySelector("dialog.rk-large img").getBoundingClientRect().width);
  await page.keyboard.press("Escape");
  await page.waitForSelector("dialog.rk-large", { state: "detached", timeout: 5_000 });
  const back = await page.evaluate(() => document.activeElement.matches("a.enlarge"));
  return { violations, wide, back };
}

// What a reader of a tutorial has before the evidence, folds closed, at 1280 by 900; and the letters of its figures
// on a phone, in px. Nothing where a page is no tutorial.
function length() {
  const article = document.querySelector("article");
  if (!article.querySelector("p.strip")) return null;
  const evidence = [...article.querySelectorAll("h2")].find((heading) => heading.textContent.startsWith("Evidence"));
  const before = (node) => !evidence || node.compareDocumentPosition(evidence) & Node.DOCUMENT_POSITION_FOLLOWING;
  const shown = (selector) => [...article.querySelectorAll(selector)].filter(
    (node) => before(node) && !node.closest("details:not([open]) > :not(summary)"));
  const end = evidence ? evidence.getBoundingClientRect().top : article.getBoundingClientRect().bottom;
  const words = shown("p, li").filter((node) => !node.querySelector("p, li")).map((node) => node.textContent);
  // What stands under the title before any code: a figure, or a text that was printed.
  const [first] = shown("p.strip ~ :is(figure, .highlight)");
  const hero = first && !first.matches(".input") && (first.querySelector("img") || first);
  const code = shown(".input.highlight code").map((node) => node.textContent.trimEnd().split("\n").length);
  return {
    screens: (end + scrollY) / 900,
    lines: code.reduce((sum, lines) => sum + lines, 0),
    words: words.join(" ").split(/\s+/).length,
    hero: hero ? hero.getBoundingClientRect().bottom + scrollY : null,
  };
}

async function letters() {
  const small = [];
  for (const picture of document.querySelectorAll("article img[src$='.svg']")) {
    const wide = picture.getBoundingClientRect().width || 358;  // in a closed fold it has no width
    const stage = document.createElement("div");
    stage.style = `position: absolute; left: 0; top: 0; width: ${wide}px`;
    stage.innerHTML = await (await fetch(picture.src)).text();
    document.body.append(stage);
    const drawing = stage.querySelector("svg");
    drawing.style = `width: ${wide}px; height: auto; display: block`;
    for (const text of drawing.querySelectorAll("text, tspan")) {
      const said = [...text.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data).join("").trim();
      const matrix = text.getScreenCTM();
      const px = parseFloat(getComputedStyle(text).fontSize) * Math.hypot(matrix.c, matrix.d);
      if (said && px < 11) small.push({ figure: picture.getAttribute("src").split("/").pop(), said, px });
    }
    stage.remove();
  }
  return small;
}

async function measure(page) {
  const measured = await page.evaluate(length);
  if (!measured) return null;
  await page.setViewportSize({ width: 390, height: 844 });
  return { ...measured, small: await page.evaluate(letters) };
}

// The first two pages that the search offers for what is typed, once they stay.
async function search(page, query) {
  if (!(await page.evaluate(() => document.querySelector("#__search").checked))) await page.keyboard.press("/");
  await page.fill("[data-md-component=search-query]", "");
  await page.fill("[data-md-component=search-query]", query);
  await page.keyboard.press("End");  // it listens to keys
  const offered = () => page.evaluate(() => [...document.querySelectorAll(".md-search-result__item")].slice(0, 2).map(
    (item) => item.querySelector("a").pathname));
  let before = null, now = [], quiet = 0;
  for (let i = 0; i < 40 && quiet < 4; i++) {
    await page.waitForTimeout(150);
    before = now;
    now = await offered();
    quiet = now.length && String(before) === String(now) ? quiet + 1 : 0;  // at first the index is not there
  }
  return now;
}

const views = [];

async function visit({ name: title, url, views: wanted }) {
  const { context, page, requests, problems } = await open(url);
  const measured = await measure(page);
  for (const { scheme, width, screenshot, full } of wanted) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    await page.setViewportSize({ width, height: 900 });
    const name = { light: "default", dark: "slate" }[scheme];
    await page.waitForFunction((n) => document.body.getAttribute("data-md-color-scheme") === n, name).catch(() => {});
    await page.evaluate(() => document.querySelectorAll("details").forEach((fold) => (fold.open = true)));
    await page.waitForTimeout(300);
    if (screenshot) await page.screenshot({ path: screenshot, fullPage: Boolean(full) });
    const found = await page.evaluate(facts);
    views.push({ name: title, width, wanted: scheme, requests, problems, ...found, violations: await check(page) });
  }
  const enlarged = await enlarge(page);
  views.filter((view) => view.name === title).forEach((view) => Object.assign(view, { enlarged, measured }));
  await context.close();
}

// A first load, scrolled to its end: all that came before the scrolling, and how far anything moved without being asked to.
async function load(url, width) {
  const context = await browser.newContext({ viewport: { width, height: 900 } });
  const page = await context.newPage(), came = [];
  context.on("requestfinished", (request) => came.push(request.url()));
  await page.route("**/*.svg", async (route) => {  // as from a server far away: the text is there before the pictures
    await new Promise((done) => setTimeout(done, 300));
    await route.continue();
  });
  await page.addInitScript(() => {
    window.moved = [];
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => window.moved.push({
      by: entry.value, what: entry.sources.map(({ node }) => (node?.outerHTML ?? node?.data ?? "?").slice(0, 80)),
    }))).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(url, { waitUntil: "domcontentloaded" });
  const placeless = await page.evaluate(() => [...document.images].filter((image) =>
    image.closest("main") && image.checkVisibility() && !image.offsetHeight).map((image) => image.src));
  await page.waitForLoadState("networkidle");
  const first = [...came];
  const chooser = await page.evaluate(() => document.querySelector(".rk-cards tbody tr")?.getBoundingClientRect().bottom);
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  for (let y = 0; y < height; y += 600) {
    await page.evaluate((top) => window.scrollTo(0, top), y);
    await page.waitForTimeout(50);
  }
  await page.waitForTimeout(200);
  const moved = await page.evaluate(() => window.moved);
  await context.close();
  return { first, moved, placeless, chooser };
}

// From the home page: search, follow the first result without a new load, switch the colors, and look again.
const steps = {};

async function walk() {
  const { context, page, requests, problems } = await open(tour);
  await page.keyboard.press("/");
  await page.keyboard.type("seq2seq_loss", { delay: 20 });
  await page.waitForSelector(".md-search-result__item a", { timeout: 20_000 });
  await page.waitForTimeout(300);
  steps.search = await check(page);
  await page.click(".md-search-result__item a[href*='api/losses']");
  await page.waitForURL("**/api/losses/**");
  await page.waitForSelector(".katex-html", { timeout: 20_000 });
  steps.arrived = await page.evaluate(facts);
  const before = await page.evaluate(() => document.body.getAttribute("data-md-color-scheme"));
  for (let i = 0; i < 2; i++) {
    await page.click("form[data-md-component=palette] label:not([hidden])");
    await page.waitForTimeout(150);
  }
  steps.switched = (await page.evaluate(() => document.body.getAttribute("data-md-color-scheme"))) !== before;
  await page.goto(tour);
  steps.kept = (await page.evaluate(() => document.body.getAttribute("data-md-color-scheme"))) !== before;
  // Printed from a dark screen: what is dark on what is white.
  await page.emulateMedia({ media: "print", colorScheme: "dark" });
  steps.printed = await page.evaluate(() => {
    const color = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
    return {
      scheme: document.body.getAttribute("data-md-color-scheme"),
      paper: color("body", "backgroundColor"), ink: color("article p", "color"),
      code: color("article pre > code", "backgroundColor"), link: color("article p a:not(.md-button)", "color"),
    };
  });
  await page.emulateMedia({ media: "screen", colorScheme: "light" });
  steps.searches = {};
  for (const query of queries) steps.searches[query] = await search(page, query);
  Object.assign(steps, { requests, problems });
  await context.close();
}

// Nothing else runs while a load is measured; then some pages at a time, the walk beside them.
const loaded = [];
for (const { name, url, widths } of loads) {
  for (const width of widths) loaded.push({ name, width, ...(await load(url, width)) });
}
const left = [...pages];
const visitor = async () => { while (left.length) await visit(left.shift()); };
await Promise.all([visitor(), visitor(), visitor(), tour && walk()]);
await browser.close();
process.stdout.write(JSON.stringify({ views, steps, loaded }));

// Reads an unpacked site from the disk, without a network, and prints as JSON what worked.
// stdin: {executable, folder: url of the unpacked site, pages: [paths], query}
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const { executable, folder, pages, query } = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: executable,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const context = await browser.newContext({ reducedMotion: "reduce", viewport: { width: 1280, height: 900 }, offline: true });
const page = await context.newPage();
const requests = [], problems = [];
page.on("request", (request) => requests.push(request.url()));
// A page that is left while it loads asks for nothing more: that is no failure.
const left = (request) => request.failure().errorText === "net::ERR_ABORTED";
page.on("requestfailed", (request) => left(request) || problems.push(`failed: ${request.url()}`));
page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
page.on("console", (line) => line.type() === "error" && problems.push(`console: ${line.text()}`));

// What of a page is there: its figures, its formulas with the fonts they need, its colors.
async function looked() {
  await page.evaluate(async () => {
    document.querySelectorAll("details").forEach((fold) => (fold.open = true));
    document.querySelectorAll("img[loading=lazy]").forEach((picture) => (picture.loading = "eager"));
    await Promise.all([...document.images].map((picture) => picture.decode().catch(() => {})));
    await document.fonts.ready;
  });
  return page.evaluate(() => ({
    title: document.querySelector("h1").textContent,
    figures: document.querySelectorAll("article img").length,
    missing: [...document.images].filter((picture) => !picture.naturalWidth).map((picture) => picture.src),
    raw: [...document.querySelectorAll(".arithmatex")].filter((node) => !node.querySelector(".katex-html")).length,
    formulas: document.querySelectorAll(".katex-html").length,
    unfit: [...document.fonts].filter((font) => font.status === "error").map((font) => font.family),
    fonts: [...document.fonts].filter((font) => font.status === "loaded").length,
    styled: getComputedStyle(document.querySelector(".md-typeset h1")).fontWeight === "700",
    uncolored: [...document.querySelectorAll(".input.highlight code")].filter((node) => !node.dataset.colored && node.dataset.colored !== "").length,
  }));
}

const seen = {};
for (const path of pages) {
  await page.goto(`${folder}/${path}`);
  seen[path] = await looked();
}

// As a reader goes: from the first page along the buttons below, by the tabs above, and to a section.
await page.goto(`${folder}/index.html`);
const walk = [];
for (const selector of [".md-tabs__link >> nth=1", ".md-footer__link--next", ".md-footer__link--prev", ".md-logo", "article a[href*='#which']"]) {
  await page.locator(selector).first().click();
  await page.waitForLoadState();
  walk.push(page.url().slice(folder.length + 1));
}

// The search: what is typed, what is offered, where the first leads.
await page.goto(`${folder}/shapes/index.html`);
await page.keyboard.press("/");
await page.keyboard.type(query, { delay: 20 });
await page.waitForSelector(".md-search-result__item a", { timeout: 20_000 });
await page.waitForTimeout(600);
const offered = await page.evaluate(() => [...document.querySelectorAll(".md-search-result__item")].map((item) => item.querySelector("a").href));
await page.keyboard.press("ArrowDown");
await page.keyboard.press("Enter");
await page.waitForURL((url) => !url.pathname.endsWith("/shapes/index.html"), { timeout: 20_000 });
const arrived = page.url();
const found = (await looked()).title;

// The choice of colors is kept from page to page.
const scheme = () => page.evaluate(() => document.body.getAttribute("data-md-color-scheme"));
await page.emulateMedia({ colorScheme: "light" });
const before = await scheme();
for (let i = 0; i < 2; i++) {
  await page.click("form[data-md-component=palette] label:not([hidden])");
  await page.waitForTimeout(150);
}
const after = await scheme();
await page.goto(`${folder}/index.html`);
const kept = await scheme();

await browser.close();
process.stdout.write(JSON.stringify({ seen, walk, offered, arrived, found, colors: { before, after, kept }, requests, problems }));

// Runs after every page view: typesets math with the vendored KaTeX, then mends what screen readers and keyboards need.
(function () {
  "use strict";

  // Only a page with math comes with KaTeX. Who arrives at one without a load gets it here.
  var KATEX = new URL("katex/katex.min.js", document.currentScript.src).href, asked = false;

  function ask() {
    var script = document.createElement("script");
    asked = true;
    script.src = KATEX;
    script.addEventListener("load", page);
    document.body.append(script);
  }

  function typeset(root) {
    var waiting = root.querySelectorAll(".arithmatex:not([data-typeset])");
    if (waiting.length && !window.katex) return asked || ask();
    waiting.forEach(function (node) {
      var tex = node.textContent.trim();
      var display = tex.startsWith("\\[");
      node.setAttribute("data-typeset", "");
      katex.render(tex.slice(2, -2), node, { displayMode: display, throwOnError: false, output: "htmlAndMathml" });
    });
  }

  // Python arrives as plain text, which makes a page a fifth lighter, and gets the classes of Pygments here.
  // In turn: comment, string, constant, keyword, number, the name that def or class defines.
  var PYTHON = new RegExp([
    "(#.*)", "([rbfu]{0,2}(?:\"\"\"[^]*?\"\"\"|\"(?:\\\\.|[^\"\\\\\\n])*\"|'(?:\\\\.|[^'\\\\\\n])*'))", "\\b(None|True|False)\\b",
    "\\b(and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|not|or|" +
      "pass|raise|return|try|while|with|yield)\\b", "(?<![\\w.])(\\d[\\w.]*)", "(?<=\\b(?:def|class) )(\\w+)",
  ].join("|"), "g");
  var CLASSES = ["c1", "s2", "kc", "k", "mi", "nf"];

  var PLAIN = ":is(.input, .language-python).highlight code:not([data-colored])";

  function colorText(node) {
    var text = node.data, at = 0, colored = document.createDocumentFragment();
    for (var match of text.matchAll(PYTHON)) {
      var span = document.createElement("span");
      span.className = CLASSES[match.slice(1).findIndex(function (part) { return part !== undefined; })];
      span.textContent = match[0];
      colored.append(text.slice(at, match.index), span);
      at = match.index + match[0].length;
    }
    colored.append(text.slice(at));
    node.replaceWith(colored);
  }

  // Text by text: the signatures of the API hold links.
  function color(root) {
    root.querySelectorAll(PLAIN).forEach(function (node) {
      var texts = [], walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) texts.push(walker.currentNode);
      node.setAttribute("data-colored", "");
      texts.forEach(colorText);
    });
  }

  // What scrolls must be reachable by keyboard; what does not scroll must not be a stop.
  function reachable(root) {
    root.querySelectorAll("pre > code, .md-typeset__scrollwrap, div.arithmatex").forEach(function (node) {
      var scrolls = node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight + 1;
      if (scrolls) node.tabIndex = 0;
      else node.removeAttribute("tabindex");
    });
  }

  // A figure's link opens the picture over the page, as large as the window; without this script, it opens the file.
  function enlarge(link) {
    var picture = link.querySelector("img"), dialog = document.createElement("dialog");
    var close = document.createElement("button"), large = document.createElement("img");
    dialog.className = "rk-large";
    dialog.setAttribute("aria-label", "Figure, enlarged");
    close.textContent = "Close";
    large.src = link.href;
    large.alt = picture.alt;
    dialog.append(close, large);
    dialog.addEventListener("click", function () { dialog.close(); });
    dialog.addEventListener("close", function () { dialog.remove(); link.focus(); });
    document.body.append(dialog);
    dialog.showModal();
  }

  // A link into a fold opens it.
  function unfold() {
    var target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (var fold = target && target.closest("details:not([open])"); fold; fold = fold.parentElement.closest("details:not([open])")) {
      fold.open = true;
      target.scrollIntoView();
    }
  }

  function mend(root) {
    root.querySelectorAll(".md-search[role=dialog]").forEach(function (n) { n.setAttribute("aria-label", "Search"); });
    root.querySelectorAll("nav.md-code__nav, nav.md-tags").forEach(function (n) { n.setAttribute("role", "none"); });
  }

  // The playground's own code and models, on its page alone.
  var PLAYGROUND = new URL("playground.js", document.currentScript.src).href;
  function play() {
    if (document.querySelector(".rk-play")) import(PLAYGROUND).then(function (module) { module.start(document); });
  }

  function page() {
    typeset(document);
    color(document);
    mend(document);
    reachable(document);
  }

  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a.enlarge");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    enlarge(link);
  }, true);
  window.addEventListener("hashchange", unfold);

  document$.subscribe(function () {
    page();
    unfold();
    play();
    // The theme wraps tables and adds copy buttons after this event.
    window.requestAnimationFrame(function () { window.setTimeout(page, 0); });
  });
  window.addEventListener("resize", function () { reachable(document); });
  document.addEventListener("toggle", function () { reachable(document); }, true);
  page();  // before the page is first drawn
  new MutationObserver(function () { mend(document); }).observe(document.body, { childList: true, subtree: true });
})();

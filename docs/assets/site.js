// Runs after every page view: typesets math with the vendored KaTeX, then mends what screen readers and keyboards need.
(function () {
  "use strict";

  function typeset(root) {
    root.querySelectorAll(".arithmatex:not([data-typeset])").forEach(function (node) {
      var tex = node.textContent.trim();
      var display = tex.startsWith("\\[");
      node.setAttribute("data-typeset", "");
      katex.render(tex.slice(2, -2), node, { displayMode: display, throwOnError: false, output: "htmlAndMathml" });
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

  function mend(root) {
    root.querySelectorAll(".md-search[role=dialog]").forEach(function (n) { n.setAttribute("aria-label", "Search"); });
    root.querySelectorAll("nav.md-code__nav").forEach(function (n) { n.setAttribute("role", "none"); });
  }

  function page() {
    typeset(document);
    mend(document);
    reachable(document);
  }

  document$.subscribe(function () {
    page();
    // The theme wraps tables and adds copy buttons after this event.
    window.requestAnimationFrame(function () { window.setTimeout(page, 0); });
  });
  window.addEventListener("resize", function () { reachable(document); });
  document.addEventListener("toggle", function () { reachable(document); }, true);
  new MutationObserver(function () { mend(document); }).observe(document.body, { childList: true, subtree: true });
})();

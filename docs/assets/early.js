// Runs before the theme. The index of the search is by far the largest file of the site, and the theme asks for it with
// every page: it is asked for when the search is first used.
(function () {
  "use strict";

  var used = new Promise(function (resolve) {
    document.addEventListener("focusin", function (event) {
      if (event.target.matches("[data-md-component=search-query]")) resolve();
    });
    document.addEventListener("change", function (event) {
      if (event.target.id === "__search") resolve();
    });
  });
  var open = XMLHttpRequest.prototype.open;

  XMLHttpRequest.prototype.open = function (method, address) {
    open.apply(this, arguments);
    if (!/\/search_index\.json$/.test(address)) return;
    this.send = function () { used.then(XMLHttpRequest.prototype.send.bind(this)); };
  };
})();

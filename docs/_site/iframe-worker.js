/* Pages that are opened as files may not start workers, and search runs in one: here a hidden frame does its work.
   The theme asks for this class by its name. */
(function () {
  if (location.protocol !== "file:") return;
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const self = this, frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const scope = frame.contentWindow, page = scope.document;
      page.open();
      page.write("<!doctype html><body></body>");
      page.close();
      const load = function (address) {
        return new Promise(function (resolve, reject) {
          const script = page.createElement("script");
          script.src = address;
          script.onload = resolve;
          script.onerror = reject;
          page.body.appendChild(script);
        });
      };
      // What the worker posts is heard here, what is posted here is heard by the worker.
      scope.postMessage = function (data) {
        self.dispatchEvent(new MessageEvent("message", { data: data }));
      };
      scope.importScripts = function () {
        return Array.from(arguments).reduce(function (before, address) {
          return before.then(function () { return load(address); });
        }, Promise.resolve());
      };
      const waiting = [];
      let ready = false;
      this.postMessage = function (data) {
        if (!ready) return void waiting.push(data);
        scope.dispatchEvent(new scope.MessageEvent("message", { data: data }));
      };
      load(url).then(function () {
        ready = true;
        waiting.splice(0).forEach(function (data) { self.postMessage(data); });
      });
      this.terminate = function () { frame.remove(); };
    }
    set onmessage(listener) { this.addEventListener("message", listener); }
  }
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
})();

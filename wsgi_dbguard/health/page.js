// Fetches the page again every two seconds, and puts what has changed into this one: scrolling, focus and a selection stay.
"use strict";
(() => {
  const parts = ["verdict", "detail", "workers-now", "plots-now", "events-now", "counts-now"];
  const button = document.getElementById("pause");
  const stale = document.getElementById("stale");
  let paused = false;
  let last = new Date();

  function show(fresh) {
    for (const id of parts) {
      const from = fresh.getElementById(id), to = document.getElementById(id);
      if (from.innerHTML !== to.innerHTML) to.replaceChildren(...from.childNodes);
    }
    document.title = fresh.title;
    document.querySelector("link[rel=icon]").href = fresh.querySelector("link[rel=icon]").href;
  }

  function tell(trouble) {
    stale.hidden = !trouble;
    const text = trouble ? `No news since ${last.toISOString().slice(11, 19)} UTC: ${trouble}. What follows is old.` : "";
    if (stale.textContent !== text) stale.textContent = text;
  }

  async function refresh() {
    if (!paused && !document.hidden && getSelection().isCollapsed) {
      try {
        const answer = await fetch(location.pathname, {
          headers: {Accept: "text/html"}, cache: "no-store", signal: AbortSignal.timeout(10000),
        });
        if (answer.ok) {
          show(new DOMParser().parseFromString(await answer.text(), "text/html"));
          last = new Date();
          tell("");
        } else {
          tell(`the server answers with ${answer.status}`);
        }
      } catch (error) {
        tell("the server does not answer");
      }
    }
    setTimeout(refresh, 2000);
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", paused);
    button.textContent = paused ? "Resume" : "Pause";
  });
  setTimeout(refresh, 2000);
})();

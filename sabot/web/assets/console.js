// Puts changed fragments in place, shows times in the reader's zone, and says when figures are old.

const SILENT_MS = 3000;
const silence = document.getElementById("silence");
let heard = Date.now();
let run = "";

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!isNaN(at)) {
      time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      time.title = time.dateTime;
    }
  }
}

// The way from a fragment to an element in it, by the numbers of children: the same place in the next fragment.
function wayTo(element, top) {
  const way = [];
  for (let at = element; at !== top; at = at.parentNode) way.unshift([...at.parentNode.children].indexOf(at));
  return way;
}

function replace(part, html) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const way = focused && wayTo(focused, part);
  const scrolls = [...part.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  part.innerHTML = html;
  localTimes(part);
  [...part.querySelectorAll(".scroll")].forEach((each, at) => {
    if (scrolls[at]) [each.scrollLeft, each.scrollTop] = scrolls[at];
  });
  if (way) way.reduce((at, child) => at && at.children[child], part)?.focus?.({ preventScroll: true });
}

// The numbers in the head of the page, and their sum in its title.
function showBadges(badges) {
  for (const badge of document.querySelectorAll("[data-badge]")) {
    badge.textContent = badges[badge.dataset.badge];
    badge.hidden = !badges[badge.dataset.badge];
  }
  const sum = Object.values(badges).reduce((all, each) => all + each, 0);
  document.title = (sum ? `(${sum}) ` : "") + document.title.replace(/^\(\d+\) /, "");
}

function follow(address) {
  const events = new EventSource(address);
  events.onmessage = (event) => {
    heard = Date.now();
    const told = JSON.parse(event.data);
    if (run && run !== told.run) location.reload();
    run = told.run;
    showBadges(told.badges);
    for (const part of document.querySelectorAll("[data-part]")) {
      const html = told.parts[part.dataset.part];
      const selecting = !document.getSelection().isCollapsed && part.contains(document.getSelection().anchorNode);
      if (html !== undefined && !selecting) replace(part, html);
    }
  };
  // A browser gives up after an answer such as 401 or 503: it is asked again here.
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(() => follow(address), 2000);
  };
  return events;
}

localTimes(document);
const address = document.body.dataset.events;
if (address) {
  follow(address);
  setInterval(() => {
    const ms = Date.now() - heard;
    silence.hidden = ms < SILENT_MS;
    document.body.classList.toggle("silent", ms >= SILENT_MS);
    if (ms >= SILENT_MS) {
      const at = new Date(heard).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      silence.textContent = `No news for ${Math.round(ms / 1000)} s: the app has ended, or cannot be reached. All is as of ${at}.`;
      for (const badge of document.querySelectorAll(".badge")) badge.dataset.at = ` as of ${at}`;
    }
  }, 500);
}

// Puts changed fragments in place, shows times in the reader's zone, marks tables that can be scrolled, says when
// figures are old, and keeps the page if a click finds no app.

const SILENT_MS = 3000;
const TRY_MS = 2000;
const silence = document.getElementById("silence");
const address = document.body.dataset.events;
let heard = Date.now();
const run = document.body.dataset.run;
let events = null;
let failed = false; // a click has found that the app does not answer
let ended = ""; // why the app has closed its console, as it said itself
let click = ""; // what becomes of the last click
let wanted = null; // does the last click again
let trying = false;
let passing = null; // a form that goes its way
let pressed = null; // what a pointer is down on: if it were replaced before the pointer is up, nothing would be clicked
const held = new Map(); // the fragments that have come meanwhile, by their parts

// The key of the session, which actions need beside the cookie. A browser keeps it for one port; it sends the cookie to all.
const KEY = "sabot-action-key";
const given = document.querySelector("meta[name=action-key]");
if (given) {
  try {
    localStorage.setItem(KEY, given.content);
  } finally {
    location.replace("/"); // without the storage each action asks for the token
  }
}

function keyed(body) {
  try {
    body.set("action_key", localStorage.getItem(KEY) ?? "");
  } catch {
    body.delete("action_key");
  }
  return body;
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!isNaN(at)) {
      const whole = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
      time.textContent = time.closest("td") ? shortTime(at) : whole;
      time.title = `${whole}, ${time.dateTime}`;
    }
  }
}

// The time in a table: that of today without its date, that of this year without the year.
function shortTime(at) {
  const now = new Date();
  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  if (at.toDateString() === now.toDateString()) return at.toLocaleTimeString(undefined, clock);
  const year = at.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return at.toLocaleString(undefined, { day: "numeric", month: "short", ...year, ...clock });
}

// Marks the sides on which a table goes on, so that one sees that it can be scrolled.
function markSides(box) {
  box.classList.toggle("more-left", box.scrollLeft > 1);
  box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
}

const sizes = new ResizeObserver((changed) => changed.forEach((each) => markSides(each.target.closest(".scroll"))));

function watchSides(root) {
  for (const box of root.querySelectorAll(".scroll")) {
    markSides(box);
    for (const each of [box, ...box.children]) sizes.observe(each);
  }
}

// The buttons for the selected questions are there as soon as one is selected.
function allowBulk() {
  const selected = document.querySelector("input[form=bulk]:checked");
  for (const button of document.querySelectorAll("#bulk button[name]")) button.disabled = !selected;
}

function prepare(root) {
  localTimes(root);
  watchSides(root);
  allowBulk();
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
  const typed = [...part.querySelectorAll("input")].filter((each) => each.value !== each.defaultValue)
    .map((each) => [wayTo(each, part), each.value]);
  const scrolls = [...part.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  part.innerHTML = html;
  prepare(part);
  [...part.querySelectorAll(".scroll")].forEach((each, at) => {
    if (scrolls[at]) [each.scrollLeft, each.scrollTop] = scrolls[at];
  });
  const found = (to) => to.reduce((at, child) => at && at.children[child], part);
  for (const [to, value] of typed) if (found(to)?.matches("input")) found(to).value = value;
  if (way) found(way)?.focus?.({ preventScroll: true });
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

function follow() {
  events = new EventSource(address);
  events.onmessage = (event) => {
    const told = JSON.parse(event.data);
    if (run !== told.run) return wanted ? wanted() : location.reload();
    ended = "";
    heard = Date.now();
    showBadges(told.badges);
    for (const part of document.querySelectorAll("[data-part]")) {
      const html = told.parts[part.dataset.part] ?? held.get(part);
      const selecting = !document.getSelection().isCollapsed && part.contains(document.getSelection().anchorNode);
      if (html === undefined) continue;
      if (selecting || part.contains(pressed)) held.set(part, html); // it is sent once
      else {
        held.delete(part);
        replace(part, html);
      }
    }
  };
  events.addEventListener("ended", (event) => {
    [ended, heard] = [event.data, Date.now()];
    tell();
  });
  // A browser gives up after an answer such as 401 or 503: it is asked again here.
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, TRY_MS);
  };
}

// Says above the page that the app has ended or does not answer, and what becomes of the last click.
function tell() {
  const gone = ended || failed || (address && Date.now() - heard >= SILENT_MS);
  const at = new Date(heard).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const silent = `The app does not answer since ${at}: it has ended, or cannot be reached, and is tried again. `;
  const news = ended ? `${ended}, at ${at}; this page comes back when it runs again. ` : silent;
  const text = (gone ? news + (address ? "All is as of then. " : "") : "") + click;
  silence.hidden = !text;
  if (silence.textContent !== text) silence.textContent = text; // it is read aloud
  document.body.classList.toggle("silent", Boolean(gone));
  if (gone) for (const badge of document.querySelectorAll(".badge")) badge.dataset.at = ` as of ${at}`;
}

// -- clicks: a browser leaves a page for an error of its own if nobody answers, so a click is let through only if somebody does

const answers = () => !ended && events?.readyState === EventSource.OPEN && Date.now() - heard < SILENT_MS;

async function reached() {
  try {
    return (await fetch("/assets/icon.svg", { cache: "no-store", signal: AbortSignal.timeout(SILENT_MS) })).ok;
  } catch {
    return false;
  }
}

// Does what a click has asked for, now or as soon as the app answers. Only the last click counts.
async function attempt(go, words) {
  wanted = go;
  if (!(await reached())) {
    if (wanted === go) click = words;
    lose();
  } else if (wanted === go) go();
}

function lose() {
  if (!failed && !address) heard = Date.now();
  failed = true;
  tell();
}

async function tryAgain() {
  if (!failed || trying) return;
  trying = true;
  const there = await reached();
  trying = false;
  if (!there) return;
  failed = false;
  if (wanted) wanted();
  else if (!address) click = "";
  tell();
}

function passOn(form, button) {
  passing = form;
  form.requestSubmit(button);
  passing = null;
}

// Sends an action and shows the answer in place of the page. It is not sent again: who knows whether it was done?
async function act(form, button, name) {
  const body = keyed(new URLSearchParams(new FormData(form, button)));
  wanted = null;
  click = `${name} waits for its answer.`;
  const late = setTimeout(tell, 500);
  if (button) button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body });
    showAnswer(answer, await answer.text());
    click = "";
    tell();
  } catch {
    click = `${name} has had no answer, and is not sent again: look whether it was done when the app answers.`;
    if (button) button.disabled = false;
    lose();
  } finally {
    clearTimeout(late);
  }
}

function showAnswer(answer, text) {
  const main = document.querySelector("main");
  if (answer.headers.get("content-type").startsWith("text/html")) {
    const page = new DOMParser().parseFromString(text, "text/html");
    main.replaceChildren(...page.querySelector("main").childNodes);
    document.title = page.title;
  } else {
    const said = document.createElement("p");
    [said.className, said.textContent] = ["said problem", text];
    main.replaceChildren(said);
  }
  prepare(main);
  history.pushState(null, ""); // the way back leads to the page with the form
  main.tabIndex = -1;
  main.focus();
  scrollTo(0, 0);
}

addEventListener("popstate", () => location.reload());
addEventListener("pageshow", allowBulk); // a browser selects again what was selected before it went back
document.addEventListener("change", allowBulk);

document.addEventListener("submit", (event) => {
  const [form, button] = [event.target, event.submitter];
  const name = `"${button?.textContent ?? "The form"}"`;
  if (form === passing) return;
  if (new URL(form.action).pathname.includes("/act/")) {
    event.preventDefault();
    act(form, button, name);
  } else if (!answers()) {
    event.preventDefault();
    attempt(() => passOn(form, button), `${name} is done as soon as it answers.`);
  }
});

document.addEventListener("pointerdown", (event) => (pressed = event.target));
for (const over of ["pointerup", "pointercancel"]) {
  document.addEventListener(over, () => setTimeout(() => (pressed = null))); // behind the click
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  const changed = event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
  if (!link || changed || answers()) return;
  const to = new URL(link.href.baseVal ?? link.href, location); // a link of a drawing has another kind of address
  if (to.origin !== location.origin || to.hash) return;
  event.preventDefault();
  attempt(() => location.assign(to), `"${link.textContent.trim()}" is opened as soon as it answers.`);
});

prepare(document);
document.addEventListener("scroll", (event) => event.target.matches?.(".scroll") && markSides(event.target), true);
if (address) {
  follow();
  setInterval(tell, 500);
}
setInterval(tryAgain, TRY_MS);

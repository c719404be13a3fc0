// TensorBoard around the frame: when its data are new, whether it is dark, and its address, which holds the state for links.

const RELOADED = ["experimental.DataReloaded", "experimental.RunsChanged"];
const OF_OURS = "p.gradwatch.";

/** @returns {host: what view.js asks of its surroundings, reloaded: (callback) → function that ends it} */
export function connect() {
  const callbacks = new Set();
  converse((type) => {
    if (RELOADED.includes(type)) callbacks.forEach((callback) => callback());
  });
  const reloaded = (callback) => {
    callbacks.add(callback);
    return () => callbacks.delete(callback);
  };
  return { host: { theme, onTheme, getState, setState, onState, shareUrl, title: "Gradient health" }, reloaded };
}

/** TensorBoard's protocol: JSON over a message port. It asks, and is answered; what it asks is what it tells. */
function converse(hear) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const { type, id, isReply } = JSON.parse(data);
    if (isReply) return;
    port1.postMessage(JSON.stringify({ type, id, payload: null, error: null, isReply: true }));
    hear(type);
  };
  parent.postMessage("experimental.bootstrap", "*", [port2]);
}

/** The page around the frame; null where it is of another origin, as a frame in a notebook may be. */
function surroundings() {
  try {
    return parent.document && parent;
  } catch {
    return null;
  }
}

function theme() {
  const around = surroundings();
  const dark = around ? around.document.body.classList.contains("dark-mode") : matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? "dark" : "light";
}

function onTheme(callback) {
  const body = surroundings()?.document.body;
  if (body) new MutationObserver(() => callback(theme())).observe(body, { attributes: true, attributeFilter: ["class"] });
}

/** The parts of TensorBoard's hash: the tab, then name=value. */
function hashParts() {
  return (surroundings()?.location.hash ?? "").slice(1).split("&").filter(Boolean);
}

function getState() {
  const state = {};
  for (const part of hashParts()) {
    const [name, value] = part.split("=");
    if (value === undefined || !name.startsWith(OF_OURS)) continue;
    try {
      state[name.slice(OF_OURS.length)] = decodeURIComponent(value);
    } catch {
      // A link that was cut short still opens the tab.
    }
  }
  return state;
}

function shareUrl(state) {
  const others = hashParts().filter((part) => part.includes("=") && !part.startsWith(OF_OURS));
  const ours = Object.entries(state)
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => `${OF_OURS}${name}=${encodeURIComponent(value)}`);
  const url = new URL((surroundings() ?? window).location.href);
  url.hash = ["gradwatch", ...others, ...ours].join("&");
  return url.href;
}

function setState(state) {
  const around = surroundings();
  // While another tab is open the address is that tab's.
  if (around && hashParts()[0] === "gradwatch") around.history.replaceState(around.history.state, "", shareUrl(state));
}

function onState(callback) {
  surroundings()?.addEventListener("hashchange", () => {
    if (hashParts()[0] === "gradwatch") callback(getState());
  });
}

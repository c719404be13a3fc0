// TensorBoard's entry: it imports this module into a frame of its own and calls render().
import { HttpSource } from "./http.js";
import { connect } from "./host.js";
import { mount } from "./view.js";

/** Fills the frame. */
export async function render() {
  document.documentElement.lang = "en";
  await stylesheet("view.css");
  const { host, reloaded } = connect();
  mount(document.body.appendChild(document.createElement("main")), new HttpSource(reloaded), { host });
}

/** Adds a stylesheet and waits for it: a canvas is measured when it is mounted. */
function stylesheet(href) {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
  const loaded = new Promise((resolve) => {
    link.onload = link.onerror = resolve;
  });
  document.head.append(link);
  return loaded;
}

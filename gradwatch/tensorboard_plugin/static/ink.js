// Colours of the page for what is drawn on canvases.

/** The colours and the font of the page, from its style sheet. */
export function lookupInk(root) {
  const style = getComputedStyle(root);
  const of = (name) => style.getPropertyValue(`--gw-${name}`).trim();
  return {
    card: of("card"),
    text: of("text"),
    muted: of("muted"),
    line: of("line"),
    accent: of("accent"),
    band: of("band"),
    chosen: of("chosen"),
    warning: of("warning"),
    font: style.fontFamily,
  };
}

// Colours of values. Scales are readable for colour-blind people; what is no ordinary value has a colour outside of them.

const SPECIAL = {
  light: { nan: [220, 20, 36], inf: [255, 64, 200], zero: [0, 0, 0] },
  dark: { nan: [255, 59, 71], inf: [255, 105, 214], zero: [255, 255, 255] },
};

const DIVERGING = {
  light: ["#08457e", "#2f7fbf", "#8fc3e6", "#f1f1ef", "#f0bd7d", "#c9741b", "#7a3a02"],
  dark: ["#9fd3ff", "#4d9fe0", "#265a86", "#2b2e34", "#8a4f17", "#df8f34", "#ffd29b"],
};

/** Colours of a value from 0 to CODES − 1, then the special ones. */
export const CODES = 248;
export const CODE = { nan: 248, inf: 249, negativeInf: 250, zero: 251, none: 252 };

// Fit of the 256 colours of viridis (van der Walt and Smith 2015) by M. Zucker, shadertoy.com/view/WlfXRN, CC0: constant to x⁶.
const VIRIDIS = [
  [0.2777273272, 0.0054073445, 0.3340998053],
  [0.1050930431, 1.4046135299, 1.3845901628],
  [-0.3308618287, 0.214847559, 0.0950951631],
  [-4.6342304983, -5.7991009734, -19.3324409563],
  [6.2282699363, 14.1799333668, 56.6905526007],
  [4.7763849977, -13.7451453777, -65.3530326334],
  [-5.4354558559, 4.6458526127, 26.3124352496],
];

// The darkest tenth is left out: beside it an exact zero, which is black, would not be told apart.
const DARKEST = 0.1;

function viridis(share) {
  const x = DARKEST + (1 - DARKEST) * share;
  return [0, 1, 2].map((channel) => 255 * VIRIDIS.reduceRight((sum, row) => sum * x + row[channel], 0));
}

function diverging(share, theme) {
  const stops = DIVERGING[theme].map(channels);
  const place = share * (stops.length - 1);
  const at = Math.min(stops.length - 2, Math.floor(place));
  return stops[at].map((channel, index) => channel + (place - at) * (stops[at + 1][index] - channel));
}

/** The colours of a theme that stand outside of the scale, as [red, green, blue]. */
export function specialColors(theme) {
  return SPECIAL[theme];
}

/** The colour of a place on a scale, 0 to 1, as [red, green, blue]. */
export function colorAt(share, palette, theme) {
  const mixed = palette === "diverging" ? diverging(share, theme) : viridis(share);
  return mixed.map((channel) => Math.round(Math.min(255, Math.max(0, channel))));
}

/** An opaque pixel, as little-endian RGBA. */
export function pixelOf([r, g, b]) {
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

/** "#rrggbb" → [red, green, blue]. */
export function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Code → pixel, as little-endian RGBA; what was not recorded is transparent. */
export function lookup(palette, theme) {
  const pixels = new Uint32Array(256);
  for (let code = 0; code < CODES; code++) pixels[code] = pixelOf(colorAt(code / (CODES - 1), palette, theme));
  const special = SPECIAL[theme];
  pixels[CODE.nan] = pixelOf(special.nan);
  pixels[CODE.inf] = pixels[CODE.negativeInf] = pixelOf(special.inf);
  pixels[CODE.zero] = pixelOf(special.zero);
  return pixels;
}

/** [red, green, blue] → CSS. */
export function css([r, g, b]) {
  return `rgb(${r}, ${g}, ${b})`;
}

/** Lines of a chart: Okabe and Ito's colours, the dark ones lightened for a dark page. */
export function lineColors(theme) {
  return theme === "dark"
    ? ["#5db6f0", "#f0a53a", "#2fc39b", "#e58fc0", "#f4e36b", "#ff8f57", "#a9b4c2"]
    : ["#0072b2", "#d98200", "#009e73", "#b8578f", "#8a7a00", "#d55e00", "#5c6670"];
}

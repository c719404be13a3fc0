// How the magnitudes of a tensor are distributed, over the steps: a column for each record, a row for each octave.
import { Axis } from "./chart.js";
import { colorAt, css } from "./colors.js";

/** The largest share in a histogram. */
export function most({ shares }) {
  return Math.max(...shares.flat());
}

/**
 * Draws a histogram.
 *
 * @param histogram steps, and for each the shares of the elements that are not zero, by octave from exponent `first` on
 * @param steps axis.Steps of the window
 * @param box left, right and bottom, in pixels
 */
export function drawDistribution(ctx, histogram, steps, { left, right, bottom: end }, { ink, theme }) {
  const { steps: recorded, first, shares } = histogram;
  const axis = new Axis("log", [2 ** first, 2 ** (first + shares[0].length)], 0, end);
  axis.draw(ctx, left, right, ink);
  const brightest = most(histogram);
  recorded.forEach((step, at) => {
    // As wide as half the way to its neighbours: records between them were not counted, or not read.
    const from = Math.max(steps.from, at ? (recorded[at - 1] + step) / 2 : step - 0.5);
    const to = Math.min(steps.to, at + 1 < recorded.length ? (recorded[at + 1] + step) / 2 : step + 0.5);
    if (to <= from) return;
    const x = left + steps.center(from);
    const wide = Math.max(1, steps.center(to) - steps.center(from)) + 0.5; // no gap where two meet within a pixel
    shares[at].forEach((share, octave) => {
      if (!share) return;
      ctx.fillStyle = css(colorAt(share / brightest, "viridis", theme));
      const [top, bottom] = [axis.y(2 ** (first + octave + 1)), axis.y(2 ** (first + octave))];
      ctx.fillRect(x, top, wide, bottom - top + 0.5);
    });
  });
}

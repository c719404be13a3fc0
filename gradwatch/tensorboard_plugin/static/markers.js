// Findings as marks over the heat-map and the charts.

/** Incidents with their numbers → the marks of all findings: {finding, number, cause, layer}, layer null for what is no layer. */
export function marksOf(incidents, layerOf) {
  return incidents.flatMap((incident, index) =>
    [incident.cause, ...incident.consequences].map((finding, at) => ({
      finding,
      number: index + 1,
      cause: at === 0,
      layer: layerOf(finding.layer),
    })),
  );
}

/** Light on dark for what ruins a run, dark on light for what deserves a look: seen on every colour of a map. */
function inks(severity) {
  return severity === "critical"
    ? { fill: "#16181d", ring: "#ffffff", text: "#ffffff" }
    : { fill: "#ffffff", ring: "#16181d", text: "#16181d" };
}

/** A numbered badge of a cause, or the dot of a consequence. */
export function badge(ctx, x, y, mark, radius) {
  const { fill, ring, text } = inks(mark.finding.severity);
  const size = mark.cause ? radius : Math.max(3, radius * 0.42);
  ctx.beginPath();
  ctx.arc(x, y, size + 1.25, 0, 2 * Math.PI);
  ctx.fillStyle = fill === "#ffffff" ? "#16181d" : "#ffffff";
  ctx.fill();
  ctx.beginPath();
  ctx.arc(x, y, size, 0, 2 * Math.PI);
  ctx.fillStyle = fill;
  ctx.fill();
  if (!mark.cause) return;
  ctx.strokeStyle = ring;
  ctx.fillStyle = text;
  ctx.font = `600 ${Math.round(radius * 1.35)}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.fillText(String(mark.number), x, y + 0.5);
}

/** A line over the steps that a finding lasts. */
export function lasting(ctx, from, to, y) {
  for (const [width, color] of [
    [3.5, "rgba(22, 24, 29, 0.85)"],
    [1.5, "#ffffff"],
  ]) {
    ctx.beginPath();
    ctx.moveTo(from, y);
    ctx.lineTo(Math.max(from + 2, to), y);
    ctx.lineWidth = width;
    ctx.strokeStyle = color;
    ctx.lineCap = "round";
    ctx.stroke();
  }
}

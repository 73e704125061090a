// Puts the numbers of the chosen pixels into the figures that BokehJS draws. The numbers lie in the page, packed as
// eelsflow.report.packing says.
"use strict";
(async () => {
  const element = (id) => document.getElementById(id);
  const about = JSON.parse(element("about").textContent);
  const [nY, nX] = about.shape;
  const nPixels = nY * nX;
  const { pixel_size: size, pixel_unit: unit, stride } = about;

  // ---- what is packed

  async function unpack(name) {
    const parts = [...document.querySelectorAll(`script[data-name="${name}"]`)];
    return Promise.all(parts.map(async (part) => {
      const text = atob(part.textContent);
      part.remove();
      const bytes = new Uint8Array(text.length);
      for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      return new Uint8Array(await new Response(stream).arrayBuffer());
    }));
  }

  function code(planes, i) {
    let sum = 0;
    for (let number = planes.length - 1; number >= 0; number--) sum = sum * 256 + planes[number][i];
    return sum;
  }

  async function unpackMaps(name, told) {
    const planes = await unpack(name);
    return Object.fromEntries(Object.entries(told).map(([map, { number, step, lowest }]) => {
      const values = new Float64Array(nPixels);
      for (let i = 0; i < nPixels; i++) {
        const found = code(planes, number * nPixels + i);
        values[i] = found ? lowest + (found - 1) * step : NaN;
      }
      return [map, values];
    }));
  }

  // a spectrum is added to a sum
  function addSpectrum(name, pixel, sum, scale) {
    const { size, planes } = spectra[name];
    const step = scale * 2 ** (powers[name][pixel] / about.per_octave);
    let a = 0, b = 0, c = 0, d = 0;
    for (let channel = 0, i = pixel * size; channel < size; channel++, i++) {
      const found = code(planes, i);
      const difference = found % 2 ? -(found + 1) / 2 : found / 2;
      const value = difference + Math.floor((a + b + c + d + 2) / 4);
      if (channel) [a, b, c, d] = [value, a, b, c];
      else a = b = c = d = value;
      sum[channel] += value * step;
    }
  }

  // ---- what is chosen: the corners of a rectangle in pixels, the first of which stays where it is

  let chosen = null;

  function pixelsOf({ x, y, toX, toY }) {
    const pixels = [];
    for (let row = Math.min(y, toY); row <= Math.max(y, toY); row++)
      for (let column = Math.min(x, toX); column <= Math.max(x, toX); column++) pixels.push(row * nX + column);
    return pixels;
  }

  const inside = (value, n) => Math.min(Math.max(Math.round(value), 0), n - 1);
  const isSpecimen = (pixel) => Number.isFinite(maps.class[pixel]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const known = (values) => values.filter(Number.isFinite);

  function choose(x, y, toX = x, toY = y) {
    chosen = { x: inside(x, nX), y: inside(y, nY), toX: inside(toX, nX), toY: inside(toY, nY) };
    const all = pixelsOf(chosen);
    const isOne = all.length == 1;
    const specimen = all.filter(isSpecimen);
    const shown = describe(isOne ? all : specimen, isOne);
    mark();
    draw(shown);
    tell(all, specimen, isOne);
    element("text").hidden = true;
    element("copied").textContent = "";
    return shown;
  }

  // Means over pixels, in counts per recorded channel. Of vacuum and lost pixels only what was recorded is there.
  function describe(pixels, isOne) {
    const n = pixels.length;
    const found = {};
    for (const name of ["recorded", "prepared", "bands"]) {
      found[name] = new Float64Array(spectra[name].size);
      for (const pixel of pixels) addSpectrum(name, pixel, found[name], spectra[name].scale / n);
    }
    const { energies, shapes, noise, spread, scales, edges } = about.references;
    const { pivots, scale } = about.background;
    found.background = spectra.recorded.energies.map((energy, channel) => {
      const k = spectra.recorded.edges[channel];
      const fall = (pixel) => (energy / pivots[k]) ** -maps[`exponent-${k}`][pixel];
      return mean(pixels.map((pixel) => scale * maps[`amplitude-${k}`][pixel] * fall(pixel)));
    });
    found.mixed = n > 0 && pixels.every((pixel) => Number.isFinite(maps["fraction-0"][pixel])
      && about.edges.every((_, k) => maps[`counts-${k}`][pixel] > 0));
    found.isSpecimen = n > 0 && (!isOne || isSpecimen(pixels[0]));
    // of each edge: counts of its window, their share in the classes, and their noise
    const counts = about.edges.map((_, edge) => mean(pixels.map((i) => maps[`counts-${edge}`][i])));
    const shares = about.classes.map((_, k) => about.edges.map((_, edge) =>
      mean(pixels.map((i) => maps[`counts-${edge}`][i] * maps[`fraction-${k}`][i]))));
    found.classes = shares.map((share, k) => energies.map((_, band) => scales[band] * share[edges[band]] * shapes[k][band]));
    found.mixture = energies.map((_, band) => found.classes.reduce((sum, one) => sum + one[band], 0));
    found.residual = energies.map((_, band) => scales[band] * found.bands[band] - found.mixture[band]);
    const deviation = about.edges.map((_, edge) => {
      const variance = (i) => (maps.relative_deviation[i] * maps[`counts-${edge}`][i]) ** 2;
      const each = mean(pixels.map(variance));
      const together = mean(pixels.map((i) => variance(i) * Math.max(maps.effective_spectra[i], 1))) / n;
      return Math.sqrt(Math.min(each, together));
    });
    found.noise = noise.map((one, band) => 2 * scales[band] * deviation[edges[band]] * one);
    found.spread = spread.map((one, band) => Math.hypot(found.noise[band], 2 * scales[band] * counts[edges[band]] * one));
    return found;
  }

  // ---- what is drawn

  const fill = (name, data) => { model(name).data = data; };
  const edge = () => Number(element("edge")?.value ?? 0);

  // one edge is drawn at a time
  function line(name, { energies, edges }, values) {
    const here = (_, i) => edges[i] == edge();
    fill(name, values ? { x: energies.filter(here), y: values.filter(here) } : { x: [], y: [] });
  }

  function draw(found) {
    const { recorded, prepared } = spectra;
    const { references } = about;
    line("recorded", recorded, found.recorded);
    line("background", recorded, found.background.every(Number.isFinite) && found.background);
    line("prepared", prepared, found.isSpecimen && found.prepared);
    line("mixture", references, found.mixed && found.mixture);
    found.classes.forEach((one, k) => line(`class-${k}`, references, found.mixed && one));
    const bands = references.energies.map((_, band) => band).filter((band) => references.edges[band] == edge());
    const x = found.mixed ? bands.map((band) => references.energies[band]) : [];
    const above = (values) => x.map((_, i) => values[bands[i]]);
    const below = (values) => x.map((_, i) => -values[bands[i]]);
    fill("bands", {
      x, y: above(found.residual),
      noise_high: above(found.noise), noise_low: below(found.noise),
      spread_high: above(found.spread), spread_low: below(found.spread),
    });
  }

  function mark() {
    const { x, y, toX, toY } = chosen;
    fill("marker", {
      left: [(Math.min(x, toX) - 0.5) * size], right: [(Math.max(x, toX) + 0.5) * size],
      top: [(Math.min(y, toY) - 0.5) * size], bottom: [(Math.max(y, toY) + 0.5) * size],
    });
  }

  function showLayer() {
    const layer = about.layers[element("layer").value];
    model("mapper").setv({ palette: about.palettes[layer.palette], low: layer.low, high: layer.high });
    fill("layer", {
      image: [new NDArray(maps[layer.name], [nY, nX])], x: [-size / 2], y: [-size / 2], dw: [nX * size], dh: [nY * size],
    });
    hatch("unknown", layer.hatched);
    model("colors").setv({ visible: layer.palette != "classes", title: layer.label || " " });
  }

  // the outline of every run of marked pixels in a row, with gaps between them
  function hatch(name, isShown) {
    const [xs, ys] = [[], []];
    for (let i = 0; isShown && i < nPixels; i++) {
      if (maps[name][i] != 1) continue;
      const [row, first] = [Math.floor(i / nX), i % nX];
      while (i % nX < nX - 1 && maps[name][i + 1] == 1) i++;
      const [left, right] = [(first - 0.5) * size, (i % nX + 0.5) * size];
      xs.push(left, right, right, left, NaN);
      ys.push((row - 0.5) * size, (row - 0.5) * size, (row + 0.5) * size, (row + 0.5) * size, NaN);
    }
    fill(name, { x: xs, y: ys });
  }

  function setRange(range, start, end) {
    range.setv({ start, end, reset_start: start, reset_end: end });
  }

  function setAxes() {
    const plot = model("map");
    setRange(plot.x_range, -size / 2, (nX - 0.5) * size);
    setRange(plot.y_range, (nY - 0.5) * size, -size / 2);
    plot.below[0].visible = nX > 1;
    plot.left[0].visible = nY > 1;
    const { dispersion } = spectra.recorded;
    showEdge();
    for (const name of ["recorded-panel", "prepared-panel", "residual-panel"])
      model(name).left[0].axis_label = `counts per ${Number(dispersion.toPrecision(3))} eV`;
  }

  // the energies of one edge; what lies between two edges is not in the page
  function showEdge() {
    const { dispersion, stretches } = spectra.recorded;
    const [start, size] = stretches[edge()];
    setRange(model("energies"), start - dispersion / 2, start + (size - 0.5) * dispersion);
  }

  function fitMap() {
    const plot = model("map");
    const room = element("map").clientWidth - plot.min_border_left - 34; // of the tools
    const isSliver = nX > 16 * nY || nY > 16 * nX || nX == 1 || nY == 1;
    let width = room;
    let height = isSliver ? (nY <= nX ? 64 : 420) : room * nY / nX;
    if (isSliver && nX == 1) width = Math.min(room, 64);
    if (!isSliver && height > 560) [width, height] = [room * 560 / height, 560];
    plot.setv({ frame_width: Math.round(width), frame_height: Math.round(height) });
  }

  // ---- what is told

  const number = (value, digits) => Number.isFinite(value) ? value.toFixed(digits) : "–";
  const place = (one) => unit == "px" ? "" : ` (${number(one * size, 1)} ${unit})`;
  const status = (pixel) => isSpecimen(pixel) ? about.classes[maps.class[pixel]] : maps.lost[pixel] ? "lost" : "vacuum";

  function tell(all, specimen, isOne) {
    const { x, y, toX, toY } = chosen;
    const row = (name, digits, what = specimen) => number(mean(known(what.map((i) => maps[name]?.[i] ?? NaN))), digits);
    const ends = (one, other) => `${Math.min(one, other) * stride} to ${Math.max(one, other) * stride}`;
    element("said").textContent = isOne
      ? `Pixel x ${x * stride}, y ${y * stride}: ${status(all[0])}`
      : `Mean of the ${specimen.length} specimen pixels of x ${ends(x, toX)}, y ${ends(y, toY)}`;
    element("classes").tBodies[0].replaceChildren(...about.classes.map((name, k) => {
      const line = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cells = [row(`probability-${k}`, 3), `${row(`fraction-${k}`, 3)} ± ${row(`fraction_error-${k}`, 3)}`];
      line.append(head, ...cells.map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      }));
      return line;
    }));
    const unknown = specimen.filter((pixel) => maps.unknown[pixel]).length;
    const rows = [
      ["Position", isOne ? `x ${x * stride}${place(x)}, y ${y * stride}${place(y)}`
        : `x ${ends(x, toX)}, y ${ends(y, toY)}${unit == "px" ? "" : `; ${number((Math.abs(toX - x) + 1) * size, 1)} × ${number((Math.abs(toY - y) + 1) * size, 1)} ${unit}`}`],
      [isOne ? "Class" : "Classes", isOne ? status(all[0])
        : about.classes.map((name, k) => `${name} ${specimen.filter((pixel) => maps.class[pixel] == k).length}`).join(", ")],
      ["Unknown", specimen.length ? (isOne ? (unknown ? "yes" : "no") : `${unknown} of ${specimen.length}`) : "–"],
      ["Distance", `${row("distance", 2)} from the training spectra${about.unknown_above ? `; unknown above ${number(about.unknown_above, 2)}` : ""}`],
      ["Dose", `${row("electrons", 1)} electrons per 0.1 eV`],
      ["Thickness", maps.t_over_lambda && `${row("t_over_lambda", 3)} t/λ${maps.thickness ? `, ${row("thickness", 1)} nm` : ""}`],
      ["Energy offset", maps.zero_loss_offset && `${row("zero_loss_offset", 2)} eV`],
      ["Valence", maps.valence && row("valence", 2)],
      ["L3/L2 ratio", maps.l3_l2_ratio && `${row("l3_l2_ratio", 2)} ± ${row("l3_l2_ratio_error", 2)}`],
      ["L3 position", maps.l3_position && `${row("l3_position", 2)} ± ${row("l3_position_error", 2)} eV`],
      ["Effective spectra", row("effective_spectra", 1)],
    ].filter(([, text]) => text);
    if (!isOne) rows.push(["Errors", "± is of a single pixel, on average"]);
    element("numbers").replaceChildren(...rows.flatMap(([name, text]) => {
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      value.textContent = text;
      return [term, value];
    }));
  }

  // The same as is drawn, at the recorded energies; what is not known is left empty.
  function asText() {
    const isOne = chosen.x == chosen.toX && chosen.y == chosen.toY;
    const pixels = pixelsOf(chosen);
    const found = describe(isOne ? pixels : pixels.filter(isSpecimen), isOne);
    const prepared = found.prepared;
    const at = (energies, values, energy) => {
      const step = energies[1] - energies[0];
      let [low, above] = [0, energies.length];
      while (above - low > 1) {
        const middle = Math.floor((low + above) / 2);
        if (energies[middle] <= energy + 1e-9 * step) low = middle;
        else above = middle;
      }
      const part = (energy - energies[low]) / step;
      if (part < -1e-9 || (part > 1e-9 && (above == energies.length || energies[above] - energies[low] > 1.5 * step)))
        return NaN;
      return values[low] + part * (values[Math.min(low + 1, energies.length - 1)] - values[low]);
    };
    const cell = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(9))) : "";
    const rows = [...spectra.recorded.energies].map((energy, channel) => {
      const one = found.isSpecimen ? at(spectra.prepared.energies, prepared, energy) : NaN;
      const mixture = found.mixed ? at(about.references.energies, found.mixture, energy) : NaN;
      return [energy, found.recorded[channel], one, mixture, one - mixture].map(cell).join("\t");
    });
    return ["energy loss (eV)\trecorded (counts)\tprepared (counts)\tmixture (counts)\tresidual (counts)", ...rows, ""].join("\n");
  }

  async function copy() {
    const area = element("text");
    area.value = asText();
    try {
      await navigator.clipboard.writeText(area.value);
      element("copied").textContent = "copied";
    } catch { // not allowed here: the text is shown, and selected
      area.hidden = false;
      area.focus();
      area.select();
      element("copied").textContent = "Copying is not allowed here: the text is selected below, press Ctrl+C.";
    }
  }

  // ---- begin

  if (typeof DecompressionStream == "undefined") {
    element("said").textContent = "This browser is too old to read the numbers in this page; any of 2023 or later does.";
    return;
  }
  const { document: content, roots } = JSON.parse(element("figures").textContent);
  await Bokeh.embed.embed_items({ figures: content }, [{ docid: "figures", roots, root_ids: Object.keys(roots) }]);
  const drawn = Bokeh.documents[0];
  const model = (name) => drawn.get_model_by_name(name);
  const NDArray = model("layer").data.image[0].constructor; // BokehJS's own, of two dimensions
  const maps = await unpackMaps("maps", about.maps);
  maps.confidence = Float64Array.from(maps.class, (k, i) => Number.isFinite(k) ? maps[`probability-${k}`][i] : NaN);
  const spectra = {};
  const powers = await unpackMaps("powers", about.powers);
  await Promise.all(Object.entries(about.spectra).map(async ([name, one]) => {
    const energies = Float64Array.from(
      one.stretches.flatMap(([start, size]) => Array.from({ length: size }, (_, i) => start + i * one.dispersion)));
    const edges = one.stretches.flatMap(([, size], k) => Array(size).fill(k));
    spectra[name] = { ...one, energies, edges, planes: await unpack(name) };
  }));

  setAxes();
  fitMap();
  showLayer();
  hatch("lost", true);
  const plot = model("map");
  plot.on_event("tap", ({ x, y }) => choose(x / size, y / size));
  plot.on_event("selectiongeometry", ({ geometry: { x0, x1, y0, y1 }, final }) => {
    if (final) choose(x0 / size, y0 / size, x1 / size, y1 / size);
  });
  plot.on_event("mousemove", ({ x, y }) => {
    const [column, row] = [Math.round(x / size), Math.round(y / size)];
    if (column < 0 || row < 0 || column >= nX || row >= nY) return;
    const layer = about.layers[element("layer").value];
    const pixel = row * nX + column;
    const value = layer.name == "class" ? status(pixel)
      : isSpecimen(pixel) ? `${number(maps[layer.name][pixel], 3)} ${layer.label}` : status(pixel);
    element("under").textContent = `x ${column * stride}, y ${row * stride}: ${value}`;
  });
  element("map").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { x, y, toX, toY } = chosen;
    if (step && event.shiftKey) choose(x, y, toX + step[0], toY + step[1]);
    else if (step) choose(toX + step[0], toY + step[1]);
    else if (event.key == "Escape") choose(x, y);
    else return;
    event.preventDefault();
  });
  element("layer").addEventListener("change", showLayer);
  element("edge")?.addEventListener("change", () => {
    showEdge();
    choose(chosen.x, chosen.y, chosen.toX, chosen.toY);
  });
  element("copy").addEventListener("click", copy);
  new ResizeObserver(fitMap).observe(element("map"));

  const middle = { x: (nX - 1) / 2, y: (nY - 1) / 2 };
  let [first, nearest] = [0, Infinity];
  for (let i = 0; i < nPixels; i++) {
    const away = Math.hypot(i % nX - middle.x, Math.floor(i / nX) - middle.y);
    if (isSpecimen(i) && away < nearest) [first, nearest] = [i, away];
  }
  choose(first % nX, Math.floor(first / nX));
  document.documentElement.dataset.ready = "yes";
})();

// Draws regions with BokehJS, asks the server what they hold, and has them saved. No state but the list of regions.
"use strict"

const byId = (id) => document.getElementById(id)
const ask = async (what, body) => {
  const options = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  }
  const answer = await fetch(what, options)
  const content = await answer.json()
  if (!answer.ok) throw new Error(content.error)
  return content
}
const say = (text, bad = false) => {
  byId("said").textContent = text
  byId("said").classList.toggle("bad", bad)
}
const gone = "the program that serves this page has ended; nothing was saved. Start it again, then save here"

async function begin() {
  const start = await ask("start")
  await Bokeh.embed.embed_item(start.map, "map")
  await Bokeh.embed.embed_item(start.spectra, "spectra")
  const model = (name) => Bokeh.documents.map((one) => one.get_model_by_name(name)).find((one) => one)
  const plot = model("map")
  // Who rests before she drags still drags: BokehJS takes .3 s of rest for another gesture
  const gestures = Bokeh.index.find_one(plot)?.canvas_view?.ui_event_bus?.ui_gestures?.constructor
  if (gestures) gestures.press_threshold = 1e9
  const [height, width] = start.shape
  const names = [...start.classes.map((one) => one.name), ""]
  const colors = Object.fromEntries([...start.classes.map((one) => [one.name, one.color]), ["", "#000000"]])
  let regions = start.regions, taken = [], saved = JSON.stringify(regions)
  let chosen = names[0], tool = "polygon", drawing = null, latest = null, labels = null

  // What the page shows of itself
  document.title = `${start.name} – label`
  byId("name").textContent = start.name
  byId("where").textContent = `Save writes ${start.truth}` + (start.manifest ? ` and names it in ${start.manifest}` : "")
  start.layers.forEach(({name}, number) => byId("layer").add(new Option(name, number)))
  for (const name of names) {
    const button = document.createElement("button")
    const titles = {[start.mixed]: "mixed or none", "": "no label (erase)"}
    button.type = "button"
    button.dataset.class = name
    button.setAttribute("role", "radio")
    button.title = name ? `${names.indexOf(name) + 1}` : "E"
    button.innerHTML = '<span class="swatch"></span><span></span><span class="count"></span>'
    button.children[0].style.background = name ? colors[name] : "#ffffff"
    button.children[1].textContent = titles[name] ?? name
    button.onclick = () => choose(name)
    byId("classes").append(button)
  }
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("role", "radio")
    button.onclick = () => use(button.dataset.tool)
  }

  function fit() {
    const box = byId("map"), wide = box.clientWidth
    const tall = Math.min(Math.max((wide - 70) * height / width + 110, 160), Math.max(window.innerHeight - 210, 320))
    box.style.height = `${Math.round(tall)}px`
  }

  function choose(name) {
    chosen = name
    for (const button of byId("classes").children) button.setAttribute("aria-checked", button.dataset.class === name)
  }

  function use(name) {
    tool = name
    for (const button of document.querySelectorAll("[data-tool]"))
      button.setAttribute("aria-checked", button.dataset.tool === name)
    for (const one of ["lasso", "rectangle", "brush", "pan"]) model(one).active = one === name
    corners([])
    byId("radius-box").hidden = name !== "brush"
    size()
  }

  // The stroke is as wide on the screen as what it paints
  function size() {
    const frame = plot.inner_width || plot.width || 400
    const shown = Math.abs(plot.x_range.end - plot.x_range.start) || width
    model("stroke").glyph.line_width = {value: Math.max(2 * radius() * frame / shown, 2)}
  }
  const radius = () => Math.max(Number(byId("radius").value) || 1, 0.1)

  function shape(geometry) {
    const round = (value) => Math.round(value * 1000) / 1000
    if (geometry.type === "rect") {
      const {x0, x1, y0, y1} = geometry
      return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]].map((point) => point.map(round))
    }
    return Array.from(geometry.x, (x, number) => [round(x), round(geometry.y[number])])
  }

  function add(region) {
    regions = [...regions, region]
    taken = []
    drawing = region
    look()
  }

  plot.on_event("selectiongeometry", (event) => {
    const polygon = shape(event.geometry)
    if (polygon.length < 3) return
    const region = {class: chosen, polygon}
    if (event.final) {
      add(region)
    } else {
      drawing = region
      look()
    }
  })
  const stroke = model("stroke").data_source
  const ended = () => {
    const {xs, ys} = stroke.data
    if (tool !== "brush" || !xs.length) return
    const brush = Array.from(xs[0], (x, number) => [Math.round(1000 * x) / 1000, Math.round(1000 * ys[0][number]) / 1000])
    stroke.data = {xs: [], ys: []}
    if (brush.length) add({class: chosen, brush, radius: radius()})
  }
  plot.on_event("panend", () => setTimeout(ended, 0))
  // A polygon grows by a click; the spectrum is that of what it would be now
  let clicked = []
  function corners(points) {
    clicked = points
    model("corners").data = {x: points.map(([x]) => x), y: points.map(([, y]) => y)}
    if (points.length >= 3) {
      drawing = {class: chosen, polygon: points}
      look()
    }
  }
  function close() {
    const polygon = clicked.filter(([x, y], number) => number === 0 || x !== clicked[number - 1][0] || y !== clicked[number - 1][1])
    corners([])
    if (polygon.length >= 3) add({class: chosen, polygon})
  }
  plot.on_event("tap", ({x, y}) => {
    const point = [Math.round(1000 * x) / 1000, Math.round(1000 * y) / 1000]
    if (tool === "brush") add({class: chosen, brush: [point], radius: radius()})
    if (tool === "polygon") corners([...clicked, point])
  })
  plot.on_event("doubletap", () => { if (tool === "polygon") close() })
  plot.on_event("mousemove", (event) => tell(event))

  // What is under the mouse
  function tell(event) {
    const x = Math.floor(event.x), y = Math.floor(event.y)
    const inside = x >= 0 && y >= 0 && x < width && y < height
    if (!inside) {
      byId("place").textContent = "\u00a0"
      return
    }
    const number = byId("layer").value
    const image = model(`layer-${number}`).data_source.data.image[0]
    const value = image[y * width + x]
    const parts = [`x ${x}, y ${y}`]
    if (image instanceof Float32Array) {
      const {name, classes} = start.layers[number]
      const shown = classes.length ? classes[value] : value.toFixed(Math.abs(value) >= 100 ? 0 : 3)
      parts.push(Number.isFinite(value) ? `${name.replace(/ \(.*/, "")}: ${shown}` : "no specimen, or nothing known")
    }
    const code = labels ? labels[y * width + x] : -1
    parts.push(code < 0 ? "no label" : names[code])
    byId("place").textContent = parts.join(" · ")
  }

  // One question at a time; the newest waits
  let asking = false, waiting = false
  async function look() {
    if (asking) {
      waiting = true
      return
    }
    asking = true
    const about = drawing
    try {
      latest = await ask("look", {regions, drawing: about})
      show(about)
      mark()
    } catch (error) {
      say(error instanceof TypeError ? gone : error.message, true)
    }
    asking = false
    if (waiting) {
      waiting = false
      look()
    }
  }

  const spread = (one) => one.mean.map((mean, number) => [mean ?? NaN, one.error[number] ?? 0])
  function show(about) {
    const bytes = Uint8Array.from(atob(latest.labels), (letter) => letter.charCodeAt(0))
    labels = new Int16Array(bytes.buffer)
    const image = model("labels").data_source.data.image[0]
    const packed = start.classes.map(({color}) => {
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16))
      return (150 << 24 | blue << 16 | green << 8 | red) >>> 0
    })
    labels.forEach((code, number) => { image[number] = code < 0 ? 0 : packed[code] })
    model("labels").data_source.change.emit()
    const lines = regions.map((region) => {
      const points = region.polygon ? [...region.polygon, region.polygon[0]] : region.brush
      return {xs: points.map(([x]) => x), ys: points.map(([, y]) => y), color: region.class ? colors[region.class] : "#ffffff"}
    })
    for (const name of ["halo", "outlines"]) {
      model(name).data_source.data = {
        xs: lines.map((one) => one.xs), ys: lines.map((one) => one.ys), color: lines.map((one) => one.color),
      }
    }
    for (const button of byId("classes").children) {
      const name = button.dataset.class
      button.children[2].textContent = name ? `${latest.counts[name].toLocaleString("en")} px` : ""
      if (name) draw(name, latest.spectra[name])
    }
    draw("", about ? latest.drawing : null)
    const shown = ["", ...start.classes.map((one) => one.name)].map((name) => model(`spectrum-${name}`).data)
    const known = shown.flatMap((one) => [...one.low, ...one.high]).filter(Number.isFinite)
    if (known.length) model("spectra").y_range.setv({start: Math.min(-0.2, ...known), end: 1.05 * Math.max(...known)})
    if (about) say(`${latest.drawing.pixels.toLocaleString("en")} pixels in this region, ${latest.drawing.specimen.toLocaleString("en")} with specimen`)
  }

  function draw(name, one) {
    const source = model(`spectrum-${name}`)
    if (!one || one.specimen === 0) {
      source.data = {x: [], mean: [], low: [], high: []}
      return
    }
    const values = spread(one)
    source.data = {
      x: latest.energy_loss, mean: values.map(([mean]) => mean),
      low: values.map(([mean, error]) => mean - error), high: values.map(([mean, error]) => mean + error),
    }
  }

  const changed = () => JSON.stringify(regions) !== saved
  function mark() {
    byId("undo").disabled = regions.length === 0
    byId("save").textContent = changed() ? "Save" : "Saved"
    byId("save").disabled = !changed()
  }
  function undo() {
    if (clicked.length) return corners(clicked.slice(0, -1))
    if (!regions.length) return
    taken.push(regions.at(-1))
    regions = regions.slice(0, -1)
    drawing = null
    say("took the last region back; Shift-Z puts it there again")
    look()
  }
  function redo() {
    if (!taken.length) return
    regions = [...regions, taken.pop()]
    look()
  }
  async function save() {
    if (!changed()) return
    const sent = JSON.stringify(regions)
    try {
      const answer = await ask("save", {regions})
      saved = sent
      say(`saved ${answer.labelled.toLocaleString("en")} labelled pixels`)
    } catch (error) {
      say(error instanceof TypeError ? gone : error.message, true)
    }
    mark()
  }

  byId("layer").onchange = () => start.layers.forEach((_, number) => {
    const shown = String(number) === byId("layer").value
    model(`layer-${number}`).visible = shown
    const bar = model(`bar-${number}`)
    if (bar) bar.visible = shown
  })
  byId("labels-shown").onchange = (event) => {
    for (const name of ["labels", "halo", "outlines"]) model(name).visible = event.target.checked
  }
  byId("suggested-box").hidden = start.suggested.length === 0
  byId("suggested-shown").onchange = (event) => {
    for (const name of ["suggested-halo", "suggested"]) model(name).visible = event.target.checked
  }
  const borders = start.suggested.flatMap((one) => one.lines)
  for (const name of ["suggested-halo", "suggested"]) {
    model(name).data_source.data = {
      xs: borders.map((line) => line.map(([x]) => x)), ys: borders.map((line) => line.map(([, y]) => y)),
    }
  }
  byId("undo").onclick = undo
  byId("save").onclick = save
  byId("reset").onclick = () => {
    plot.x_range.setv({start: 0, end: width})
    plot.y_range.setv({start: height, end: 0})
  }
  byId("radius").onchange = size
  plot.on_event("rangesupdate", size)
  window.addEventListener("resize", () => { fit(); setTimeout(size, 200) })
  window.addEventListener("beforeunload", (event) => { if (changed()) event.preventDefault() })
  window.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.altKey) return
    const key = event.key.toLowerCase()
    if (clicked.length && key === "enter") return close()
    if (clicked.length && key === "escape") return corners([])
    if (clicked.length && (key === "backspace" || key === "z")) return corners(clicked.slice(0, -1))
    if (key === "z") return event.shiftKey ? redo() : undo()
    if (event.ctrlKey || event.metaKey) return
    const tools = {p: "polygon", l: "lasso", r: "rectangle", b: "brush", h: "pan"}
    if (tools[key]) use(tools[key])
    else if (key === "e") choose("")
    else if (key === "s") save()
    else if (key === "0") byId("reset").click()
    else if (names[Number(key) - 1]) choose(names[Number(key) - 1])
  })

  fit()
  choose(chosen)
  use(tool)
  await look()
  document.body.dataset.ready = "yes"
}

window.addEventListener("DOMContentLoaded", () => begin().catch((error) => say(`the page cannot be shown: ${error.message}`, true)))

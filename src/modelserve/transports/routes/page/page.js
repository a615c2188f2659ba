"use strict";
// The page knows no model and no route: all it shows is from openapi.json beside it. Whatever comes
// from the server becomes text, never markup.

const base = location.pathname.replace(/\/docs\/?$/, "");
const MOST_SHOWN = 100000; // characters of an answer
const MOST_IN_LINE = 1500; // characters of a body in the lines to copy
const MOST_WRITTEN = 2000000; // elements of an example that is made on request
const NUMPY = {
  BOOL: "bool", UINT8: "uint8", UINT16: "uint16", UINT32: "uint32", UINT64: "uint64",
  INT8: "int8", INT16: "int16", INT32: "int32", INT64: "int64",
  FP16: "float16", FP32: "float32", FP64: "float64", BYTES: "object",
};

let api = null;
let key = "";
let running = null;

const $ = (id) => document.getElementById(id);

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------ JSON as it is read best

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

// From its own characters: JavaScript would change integers beyond 2**53.
function pretty(text) {
  try {
    JSON.parse(text);
    return layOut(text.match(TOKEN));
  } catch {
    return text;
  }
}

function layOut(tokens) {
  let at = 0;
  const value = (indent) => {
    const begin = tokens[at++];
    if (begin !== "{" && begin !== "[") return begin;
    const end = begin === "{" ? "}" : "]";
    const deeper = indent + "  ";
    const parts = [];
    let flat = begin === "[";
    while (tokens[at] !== end) {
      if (tokens[at] === ",") at++;
      let name = "";
      if (begin === "{") {
        name = `${tokens[at]}: `;
        at += 2;
      }
      if (tokens[at] === "{" || tokens[at] === "[") flat = false;
      parts.push(name + value(deeper));
    }
    at++;
    if (flat || !parts.length) return begin + parts.join(", ") + end;
    return `${begin}\n${parts.map((part) => deeper + part).join(",\n")}\n${indent}${end}`;
  };
  return value("");
}

// ------------------------------------------------------------------ asking the server

function authorization() {
  if (!key) return {};
  const schemes = Object.values(api?.components?.securitySchemes || {});
  const headers = schemes.filter((one) => one.type === "apiKey" && one.in === "header");
  const bearer = !schemes.length || schemes.some((one) => one.scheme === "bearer");
  return bearer || !headers.length ? { Authorization: `Bearer ${key}` } : { [headers[0].name]: key };
}

async function load() {
  $("notice").hidden = false;
  let answer;
  let text;
  try {
    answer = await fetch(`${base}/openapi.json`, { headers: authorization(), cache: "no-store" });
    text = await answer.text();
  } catch (error) {
    fail(`The server does not answer: ${error.message}`);
    return;
  }
  if (!answer.ok) {
    if (answer.status === 401 || answer.status === 403) $("key").hidden = false;
    if (answer.status === 401 && !key) {
      fail("This server answers those who have an API key. Enter yours above.");
      $("key-value").focus();
    } else {
      fail(`${answer.status}: ${errorOf(text) || answer.statusText}`);
    }
    return;
  }
  api = JSON.parse(text);
  $("key").hidden = !api.components.securitySchemes;
  $("server").textContent = api.info.version;
  listOperations();
  show();
}

function fail(text) {
  api = null;
  $("notice").textContent = text;
  $("notice").hidden = false;
  $("model").replaceChildren();
  $("models").replaceChildren();
  $("operations").hidden = true;
}

function errorOf(text) {
  try {
    const error = JSON.parse(text).error;
    return typeof error === "string" ? error : "";
  } catch {
    return "";
  }
}

// ------------------------------------------------------------------ models

function models() {
  const found = new Map();
  for (const info of api["x-models"]) {
    const versions = found.get(info.name) || [];
    versions.push(info);
    found.set(info.name, versions);
  }
  return found;
}

function calls(name) {
  const found = [];
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (operation["x-model"] === name) found.push({ path, method, operation });
    }
  }
  return found;
}

function chosen() {
  const known = models();
  for (const name of known.keys()) {
    if (location.hash === `#/${encodeURIComponent(name)}`) return name;
  }
  return known.keys().next().value;
}

function show() {
  if (running) running.abort();
  if (!api) return;
  const name = chosen();
  listModels(name);
  $("notice").hidden = name !== undefined;
  $("model").replaceChildren();
  if (name === undefined) {
    $("notice").replaceChildren(
      el("strong", {}, "No model is ready."),
      " Models stand here once they are loaded: load one, then reload this page."
    );
    document.title = "modelserve";
    return;
  }
  document.title = `${name} - modelserve`;
  const versions = models().get(name);
  const info = versions.find((one) => one.default) || versions[0];
  $("model").append(...modelParts(name, versions, info));
}

function listModels(name) {
  const known = [...models().keys()];
  const many = known.length > 8;
  $("filter").hidden = $("filter-label").hidden = !many;
  const sought = many ? $("filter").value.toLowerCase() : "";
  const items = known
    .filter((one) => one.toLowerCase().includes(sought))
    .map((one) => {
      const versions = models().get(one);
      const count = versions.length > 1 ? `${versions.length} versions` : `version ${versionOf(versions[0])}`;
      const link = el("a", { href: `#/${encodeURIComponent(one)}` }, one, el("small", {}, count));
      if (one === name) link.setAttribute("aria-current", "page");
      return el("li", {}, link);
    });
  const others = el("a", { href: "#operations" }, "All operations");
  others.addEventListener("click", (event) => {
    event.preventDefault();
    $("operations").scrollIntoView();
  });
  items.push(el("li", { className: known.length ? "others" : "" }, others));
  $("models").replaceChildren(...items);
  $("models").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

const versionOf = (info) => info.parameters.version;

function facts(info) {
  const parts = [];
  const { max_batch_size: most, batching, labels } = info.parameters;
  parts.push(el("b", {}, `version ${versionOf(info)}`));
  if (labels) parts.push(` (${labels.split(",").join(", ")})`);
  if (info.platform) parts.push(`, ${info.platform}`);
  if (most) parts.push(", up to ", el("b", {}, most > 1 ? `${most} rows` : "1 row"), " in a batch");
  if (batching) parts.push(el("br"), `Batching ${batching}`);
  return el("p", { className: "facts" }, ...parts);
}

function tensorTable(title, specs, batched, none) {
  if (!specs.length) {
    return el("div", {}, el("h3", {}, title), el("p", { className: "quiet" }, none));
  }
  const rows = specs.map((spec) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, spec.optional ? `${spec.name} (optional)` : spec.name),
      el("td", {}, spec.datatype),
      el("td", {}, shapeOf(spec, batched))
    )
  );
  const heads = ["name", "datatype", "shape"].map((one) => el("th", { scope: "col" }, one));
  return el(
    "table",
    {},
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows)
  );
}

function shapeOf(spec, batched) {
  if (spec.shape === null) return "any";
  const size = (n, axis) => (n >= 0 ? n : batched && !axis ? "rows" : "any");
  return spec.shape.length ? spec.shape.map(size).join(" × ") : "one value";
}

function modelParts(name, versions, info) {
  const about = el("div");
  const tried = el("div");
  const choose = (version) => {
    const found = versions.find((one) => versionOf(one) === version);
    const batched = found.parameters.max_batch_size > 0;
    about.replaceChildren(
      facts(found),
      el(
        "div",
        { className: "tensors" },
        tensorTable("Inputs", found.inputs, batched, "Not told: any tensors are taken."),
        tensorTable("Outputs", found.outputs, batched, "Not known before the model answers.")
      )
    );
    const own = calls(name);
    const call =
      own.find((one) => one.operation["x-version"] === version && versions.length > 1) ||
      own.find((one) => !one.operation["x-version"] && found.default);
    tried.replaceChildren(call ? form(name, version, versions, found, call, choose) : unable(found));
  };
  choose(versionOf(info));
  return [el("h2", {}, name), about, tried];
}

function unable(info) {
  let reason = "There is no request in JSON for this model here.";
  if ([...info.inputs, ...info.outputs].some((spec) => spec.datatype === "BF16")) {
    reason = "BF16 tensors have no form in JSON: ask this model with binary tensors, as the Python client does.";
  } else if (info.name.includes("/")) {
    reason = "A name with a slash cannot stand in a path, so no request over HTTP reaches this model.";
  } else if (!info.inputs.length) {
    reason = "This model does not say what it takes, so there is no form for it.";
  }
  return el("p", {}, reason);
}

// ------------------------------------------------------------------ trying a model

function form(name, version, versions, info, call, choose) {
  const media = call.operation.requestBody.content["application/json"];
  const body = el("textarea", { spellcheck: false, autocomplete: "off", id: "body" });
  const example = media.example === undefined ? "" : pretty(JSON.stringify(media.example));
  body.value = example;
  const explain = el("input", { type: "checkbox" });
  const send = el("button", { className: "main", type: "submit" }, "Send");
  const reset = el("button", { type: "button" }, "Reset");
  const bar = el("div", { className: "bar" }, el("h3", {}, el("label", { htmlFor: "body" }, "Request")));
  if (versions.length > 1) {
    const select = el(
      "select",
      {},
      ...versions.map((one) => el("option", { value: versionOf(one) }, versionOf(one) + (one.default ? " (default)" : "")))
    );
    select.value = version;
    select.addEventListener("change", () => {
      choose(select.value);
      document.querySelector("main select").focus();
    });
    bar.append(el("label", {}, "Version", select));
  }
  if (!streams(call)) bar.append(el("label", {}, explain, "Tell where the time goes"));
  const panel = el(
    "form",
    { className: "panel" },
    bar,
    body,
    el(
      "div",
      { className: "foot" },
      send,
      reset,
      el("span", { className: "path" }, `${call.method.toUpperCase()} ${call.path}`)
    )
  );
  const answer = el("section", { className: "panel answer", "aria-live": "polite", "aria-label": "Answer" });
  nothingYet(answer);
  const lines = el("div", { className: "lines" });
  const update = () => lines.replaceChildren(...copied(name, version, versions, call, body.value));
  if (!example) {
    const count = info.inputs.filter((one) => !one.optional).reduce((sum, one) => sum + sizeOf(one), 0);
    body.placeholder = `The inputs have ${count.toLocaleString("en")} values. Paste a body, or write an example.`;
    if (count <= MOST_WRITTEN) {
      reset.textContent = "Write an example";
    } else {
      reset.hidden = true;
    }
  }
  reset.addEventListener("click", () => {
    body.value = example || JSON.stringify(written(info));
    nothingYet(answer);
    update();
  });
  body.addEventListener("input", update);
  body.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) panel.requestSubmit();
  });
  panel.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else ask(call, body.value, explain.checked, send, answer);
  });
  update();
  return el("div", {}, el("div", { className: "try" }, panel, answer), lines);
}

const streams = (call) => "text/event-stream" in (call.operation.responses[200].content || {});

function nothingYet(answer) {
  answer.replaceChildren(
    el("div", { className: "bar" }, el("h3", {}, "Answer")),
    el("p", { className: "empty" }, "Send the request to see what the model answers.")
  );
}

const shapeMade = (spec) => (spec.shape || [-1]).map((n, axis) => (n >= 0 ? n : axis ? 8 : 1));
const sizeOf = (spec) => shapeMade(spec).reduce((product, n) => product * n, 1);

function written(info) {
  const one = (type) => (type === "BOOL" ? true : type === "BYTES" ? "1" : type.startsWith("FP") ? 0.5 : 1);
  return {
    inputs: info.inputs
      .filter((spec) => !spec.optional)
      .map((spec) => ({
        name: spec.name,
        datatype: spec.datatype,
        shape: shapeMade(spec),
        data: new Array(sizeOf(spec)).fill(one(spec.datatype)),
      })),
  };
}

async function ask(call, body, explains, send, answer) {
  const control = (running = new AbortController());
  send.textContent = "Stop";
  answer.replaceChildren(
    el("div", { className: "bar" }, el("h3", {}, "Answer"), el("span", { className: "measured waiting" }, "waiting"))
  );
  const headers = { "Content-Type": "application/json", ...authorization() };
  if (explains) headers["X-Explain"] = "1";
  const started = performance.now();
  try {
    const reply = await fetch(base + call.path, {
      method: call.method.toUpperCase(),
      headers,
      body,
      cache: "no-store",
      signal: control.signal,
    });
    const { text, size } = await read(reply, answer);
    showAnswer(answer, reply, text, size, performance.now() - started);
    if (reply.status === 401) $("key").hidden = false;
  } catch (error) {
    const stopped = control.signal.aborted;
    const told = stopped ? "Stopped before the answer was there." : `The server does not answer: ${error.message}`;
    answer.replaceChildren(
      el("div", { className: "bar" }, el("h3", {}, "Answer"), el("span", { className: "status bad" }, stopped ? "stopped" : "no answer")),
      el("p", { className: "error" }, told)
    );
  } finally {
    if (running === control) running = null;
    send.textContent = "Send";
  }
}

// Return the text of a reply, showing a stream of events as it comes.
async function read(reply, answer) {
  const kind = reply.headers.get("content-type") || "";
  if (kind.startsWith("application/octet-stream")) {
    const bytes = new Uint8Array(await reply.arrayBuffer());
    const head = Number(reply.headers.get("inference-header-content-length"));
    const text = pretty(new TextDecoder().decode(bytes.subarray(0, head)));
    const rest = (bytes.length - head).toLocaleString("en");
    return { text: `${text}\n\nand ${rest} bytes of binary tensors`, size: bytes.length };
  }
  if (!kind.startsWith("text/event-stream")) {
    const text = await reply.text();
    return { text, size: new Blob([text]).size };
  }
  const pre = el("pre", { tabIndex: 0 });
  answer.append(pre);
  const decoder = new TextDecoder();
  const reader = reply.body.getReader();
  let text = "";
  let size = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    size += part.value.length;
    text += decoder.decode(part.value, { stream: true });
    if (pre.textContent.length < MOST_SHOWN) pre.textContent = text.slice(0, MOST_SHOWN);
  }
  return { text, size };
}

function showAnswer(answer, reply, text, size, milliseconds) {
  const time = milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds);
  const bar = el(
    "div",
    { className: "bar" },
    el("h3", {}, "Answer"),
    el("span", { className: `status ${reply.ok ? "good" : "bad"}` }, `${reply.status} ${reply.statusText}`),
    el("span", { className: "measured" }, `${time} ms, ${size.toLocaleString("en")} bytes`)
  );
  const error = reply.ok ? "" : errorOf(text);
  const parts = [bar];
  if (error) {
    parts.push(el("p", { className: "error" }, error));
  } else {
    const whole = pretty(text);
    const cut = whole.length > MOST_SHOWN;
    bar.append(copyButton(() => text));
    parts.push(el("pre", { tabIndex: 0 }, cut ? whole.slice(0, MOST_SHOWN) : whole));
    if (cut) parts.push(el("p", { className: "empty" }, "The rest is not shown; Copy takes all of it."));
  }
  const timing = reply.headers.get("server-timing");
  if (timing) parts.push(times(timing));
  answer.replaceChildren(...parts);
}

function times(header) {
  const parts = [];
  for (const [, name, , value, , text] of header.matchAll(/(\w+)(;dur=([\d.]+))?(;desc="([^"]*)")?/g)) {
    if (value !== undefined) parts.push(el("span", {}, `${name} ${Number(value).toFixed(3)} ms`));
    else if (text !== undefined) parts.push(el("span", {}, `${name}: ${text}`));
  }
  return el("p", { className: "times" }, ...parts);
}

// ------------------------------------------------------------------ lines to copy

function copyButton(text) {
  const button = el("button", { type: "button", className: "small" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      // Where a page is not from this machine and not encrypted, browsers have no clipboard for it.
      const field = el("textarea", { value: text() });
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
      button.focus();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function copied(name, version, versions, call, body) {
  const own = versions.length > 1 && call.operation["x-version"] ? version : "";
  const parts = [
    ["curl", curlLines(call, body)],
    ["Python", pythonLines(name, own, call, body)],
  ];
  return parts.map(([title, text]) =>
    el(
      "section",
      { className: "panel", "aria-label": title },
      el("div", { className: "bar" }, el("h3", {}, title), copyButton(() => text)),
      el("pre", { tabIndex: 0 }, text)
    )
  );
}

const inShell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function minified(body) {
  try {
    JSON.parse(body);
    return body.match(TOKEN).join("");
  } catch {
    return body;
  }
}

function curlLines(call, body) {
  const url = location.origin + base + call.path;
  const lines = [`curl ${inShell(url)}`, "-H 'Content-Type: application/json'"];
  if (api.components.securitySchemes) lines.push('-H "Authorization: Bearer $KEY"');
  const text = minified(body);
  lines.push(text.length > MOST_IN_LINE || !text ? "-d @body.json" : `-d ${inShell(text)}`);
  if (streams(call)) lines.push("--no-buffer");
  return lines.join(" \\\n  ");
}

function pythonLines(name, version, call, body) {
  const text = (value) => JSON.stringify(value);
  const given = api.components.securitySchemes ? ", api_key=key" : "";
  let document;
  try {
    document = JSON.parse(body);
  } catch {
    document = {};
  }
  if (streams(call)) {
    return [
      "import httpx",
      "",
      `url = ${text(location.origin + base + call.path)}`,
      `body = ${python(document)}`,
      `with httpx.stream("POST", url, json=body${given && ', headers={"Authorization": f"Bearer {key}"}'}) as reply:`,
      "    for line in reply.iter_lines():",
      "        print(line)",
    ].join("\n");
  }
  const tensors = Array.isArray(document?.inputs) ? document.inputs : [];
  const inputs = tensors.map((one) => `    ${text(String(one?.name))}: ${arrayLine(one)},`);
  const place = version ? `, version=${text(version)}` : "";
  return [
    "import numpy as np",
    "import modelserve as ms",
    "",
    `inputs = {`,
    ...inputs,
    `}`,
    `with ms.Client(${text(location.origin + base)}${given}) as client:`,
    `    outputs = client.predict(${text(name)}, inputs${place})`,
  ].join("\n");
}

function arrayLine(tensor) {
  const dtype = `np.${NUMPY[tensor?.datatype] || "float32"}`;
  const type = dtype === "np.bool" ? "bool" : dtype === "np.object" ? "object" : dtype;
  const shape = Array.isArray(tensor?.shape) ? tensor.shape : [];
  const sizes = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  const flat = Array.isArray(tensor?.data) ? tensor.data.flat(Infinity) : [];
  if (flat.length > 1 && flat.every((one) => one === flat[0])) {
    return `np.full(${sizes}, ${python(flat[0])}, ${type})`;
  }
  if (flat.length > 64) return `np.zeros(${sizes}, ${type})  # put your values here`;
  return `np.array(${python(flat)}, ${type}).reshape${shape.length ? sizes : "(())"}`;
}

function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

// ------------------------------------------------------------------ all operations

function listOperations() {
  const groups = new Map(api.tags.map((tag) => [tag.name, []]));
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const row = el(
        "tr",
        {},
        el("td", {}, method.toUpperCase()),
        el("th", { scope: "row" }, path),
        el("td", {}, operation.summary)
      );
      groups.get(operation.tags[0]).push(row);
    }
  }
  const parts = [];
  for (const [name, rows] of groups) {
    if (rows.length) parts.push(el("h3", {}, name), el("table", {}, el("tbody", {}, ...rows)));
  }
  $("operation-list").replaceChildren(...parts);
  $("document").href = `${base}/openapi.json`;
  $("operations").hidden = false;
}

// ------------------------------------------------------------------ the page itself

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key-value").value.trim();
  load();
});
$("reload").addEventListener("click", load);
$("filter").addEventListener("input", () => listModels(chosen()));
addEventListener("hashchange", () => {
  show();
  $("main").focus({ preventScroll: true });
});
load();

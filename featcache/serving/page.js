"use strict";

const drop = document.getElementById("drop");
const input = document.getElementById("file");
const status = document.getElementById("status");
const answers = document.getElementById("answers");
const percent = (share) => `${(100 * share).toFixed(1)} %`;

async function describe() {
  const about = await (await fetch("health")).json();
  document.getElementById("about").textContent = `${about.run}: ${about.classes.join(", ")}`;
}

function shown(file, below) {
  const article = document.getElementById("answer").content.firstElementChild.cloneNode(true);
  article.querySelector("h2").textContent = file.name;
  const image = article.querySelector("img");
  image.alt = file.name;
  image.onerror = () => { image.hidden = true; };
  image.src = URL.createObjectURL(file);
  answers.insertBefore(article, below);
  return article;
}

function row(label, share) {
  const line = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = label;
  const bar = document.createElement("td");
  bar.className = "bar";
  const meter = document.createElement("meter");
  meter.value = share;
  meter.setAttribute("aria-hidden", "true");
  bar.append(meter);
  const number = document.createElement("td");
  number.textContent = percent(share);
  line.append(name, bar, number);
  return line;
}

function doubt(answer) {
  if (answer.unlike) return "Unlike the training images: do not trust the class.";
  if (!answer.set || answer.set.length === 1) return "";
  const all = answer.set.length === 0 || answer.set.length === Object.keys(answer.probabilities).length;
  return all ? "Too uncertain to name a class." : `It may be ${answer.set.join(" or ")}.`;
}

function say(article, answer) {
  const named = answer.labels ? answer.labels.join(", ") || "None of the labels" : answer.class;
  article.querySelector(".class").textContent = named;
  article.querySelector(".doubt").textContent = doubt(answer);
  if (answer.confidence != null) article.querySelector(".sure").textContent = `Confidence ${percent(answer.confidence)}`;
  const shares = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  article.querySelector("table").hidden = false;
  article.querySelector("tbody").append(...shares.map(([label, share]) => row(label, share)));
  if (answer.heatmap) {
    const explained = shares[0][0];
    const image = article.querySelector("img");
    URL.revokeObjectURL(image.src);
    image.hidden = false;
    image.src = answer.heatmap;
    image.alt = `${image.alt}, and beside it which places speak for ${explained} (red) and against it (blue)`;
    const exact = answer.heatmap_exact ? "" : " It is an approximation.";
    article.querySelector(".note").textContent = `Red places speak for ${explained}, blue ones against it.${exact}`;
  }
}

function fail(article, words) {
  const line = article.querySelector(".doubt");
  line.className = "error";
  line.textContent = words;
}

async function ask(file, below) {
  const article = shown(file, below);
  try {
    const answer = await fetch("predict?heatmap=1", { method: "POST", body: file });
    const value = await answer.json();
    if (answer.ok) say(article, value);
    else fail(article, value.error);
  } catch {
    fail(article, "The service does not answer.");
  }
}

async function askAll(files) {
  const below = answers.firstChild;
  let done = 0;
  for (const file of files) {
    status.textContent = `${(done += 1)} of ${files.length}: ${file.name}`;
    await ask(file, below);
  }
  status.textContent = "";
}

input.addEventListener("change", () => {
  const files = [...input.files];
  input.value = "";
  askAll(files);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.remove("over");
  });
}
document.addEventListener("drop", (event) => askAll([...event.dataTransfer.files]));
describe();

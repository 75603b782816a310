
"use strict";
// Filters of the answers. Without this script all of them are shown.
const form = document.getElementById("filters");
if (form) {
  const [show, kind, count] = ["show", "kind", "count"].map((id) => document.getElementById(id));
  const cards = [...document.querySelectorAll(".cards > li")];
  const apply = () => {
    for (const card of cards) {
      const tagged = !show.value || card.dataset.tags.split(" ").includes(show.value);
      card.hidden = !(tagged && (!kind.value || card.dataset.kind === kind.value));
    }
    count.value = `${cards.filter((card) => !card.hidden).length} of ${cards.length} shown`;
  };
  form.addEventListener("change", apply);
  form.hidden = false;
  apply();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

for (const form of document.forms) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { method, path } = form.dataset;
    const headers = { Authorization: "Bearer " + document.getElementById("key").value };
    const query = new URLSearchParams();
    let target = path;
    for (const field of form.querySelectorAll("input")) {
      if (field.dataset.in === "path") target = target.replace("{" + field.name + "}", encodeURI(field.value));
      else if (field.value && field.dataset.in === "header") headers[field.name] = field.value;
      else if (field.value) query.set(field.name, field.value);
    }
    const body = form.querySelector("textarea");
    if (body) headers["Content-Type"] = "application/json";
    if (query.size) target += "?" + query;
    const shown = form.querySelector("pre");
    try {
      const answer = await fetch(target, { method, headers, body: body ? body.value : undefined });
      const text = await answer.text();
      let pretty = text;
      try { pretty = JSON.stringify(JSON.parse(text), null, 2); } catch {}
      shown.textContent = answer.status + "\n" + pretty;
    } catch (error) {
      shown.textContent = String(error);
    }
  });
}

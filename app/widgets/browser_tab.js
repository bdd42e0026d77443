// The title of the page, its shortcuts, silent while somebody types, and the secret this browser
// tab is known by.

const STORED = "flywise-page";

function secret() {
  try {
    const known = sessionStorage.getItem(STORED);
    if (known) return known;
  } catch {
    return fresh(); // storage is switched off: a reload then counts as another page
  }
  const made = fresh();
  sessionStorage.setItem(STORED, made);
  return made;
}

function fresh() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

function typing(event) {
  const target = event.composedPath()[0];
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target.tagName === "TEXTAREA" || target.tagName === "SELECT") {
    return true;
  }
  const buttons = ["button", "checkbox", "radio", "range", "submit"];
  return target.tagName === "INPUT" && !buttons.includes(target.type);
}

// Arrows belong to the control that has the focus: sliders, tabs, menus.
function taken(event) {
  if (!event.key.startsWith("Arrow")) return false;
  const roles = ["slider", "tab", "option", "menuitem", "radio", "spinbutton", "combobox"];
  return event
    .composedPath()
    .some((e) => e instanceof HTMLElement && (roles.includes(e.role) || e.type === "range"));
}

export function render({ model, el }) {
  el.style.display = "none";
  const listen = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!model.keys.includes(key) || typing(event) || taken(event)) return;
    event.preventDefault();
    model.send_msg({ key });
  };
  document.addEventListener("keydown", listen);
  const name = () => {
    if (model.heading) document.title = model.heading;
  };
  model.on("heading", name);
  name();
  const mine = secret();
  const tell = () => (model.known ? clearInterval(timer) : model.send_msg({ secret: mine }));
  const timer = setInterval(tell, 300); // what is sent before the page is connected is lost
  tell();
  model.on("remove", () => {
    document.removeEventListener("keydown", listen);
    clearInterval(timer);
  });
}

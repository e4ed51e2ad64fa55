// A list of any length: only the rows in view are elements.

const ROW_HEIGHT = 62;
const SPARE = 6;

class List {
  constructor(box, spacer, draw, onSelect) {
    Object.assign(this, { box, spacer, draw, onSelect, items: [], selected: -1, drawn: new Map() });
    box.addEventListener("scroll", () => this.refresh(), { passive: true });
    box.addEventListener("keydown", (event) => this.onKey(event));
    box.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.select(Number(row.dataset.index), true);
    });
    new ResizeObserver(() => this.refresh()).observe(box);
  }

  show(items, selected) {
    this.items = items;
    this.selected = selected;
    this.spacer.style.height = `${items.length * ROW_HEIGHT}px`;
    for (const element of this.drawn.values()) element.remove();
    this.drawn.clear();
    this.box.scrollTop = 0;
    if (selected >= 0) this.reveal(selected);
    this.refresh();
  }

  refresh() {
    const first = Math.max(Math.floor(this.box.scrollTop / ROW_HEIGHT) - SPARE, 0);
    const last = Math.min(first + Math.ceil(this.box.clientHeight / ROW_HEIGHT) + 2 * SPARE, this.items.length);
    for (const [index, element] of this.drawn) {
      if (index < first || index >= last) {
        element.remove();
        this.drawn.delete(index);
      }
    }
    for (let index = first; index < last; index++) {
      if (!this.drawn.has(index)) this.drawn.set(index, this.place(index));
    }
  }

  place(index) {
    const element = this.draw(this.items[index]);
    element.classList.add("row");
    element.id = `row-${index}`;
    element.dataset.index = index;
    element.style.top = `${index * ROW_HEIGHT}px`;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", index === this.selected);
    element.setAttribute("aria-setsize", this.items.length);
    element.setAttribute("aria-posinset", index + 1);
    this.spacer.append(element);
    return element;
  }

  select(index, byHand) {
    if (!this.items.length) return;
    this.selected = Math.min(Math.max(index, 0), this.items.length - 1);
    this.reveal(this.selected);
    this.refresh();
    for (const [number, element] of this.drawn) element.setAttribute("aria-selected", number === this.selected);
    this.box.setAttribute("aria-activedescendant", `row-${this.selected}`);
    this.onSelect(this.items[this.selected], byHand);
  }

  reveal(index) {
    const top = index * ROW_HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    const below = top + ROW_HEIGHT - this.box.clientHeight;
    if (below > this.box.scrollTop) this.box.scrollTop = below;
  }

  onKey(event) {
    const page = Math.max(Math.floor(this.box.clientHeight / ROW_HEIGHT) - 1, 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.select(this.selected + steps[event.key], false);
  }
}

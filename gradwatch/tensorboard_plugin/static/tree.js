// Dotted names → groups that fold, and the rows that are seen.

const ROWS_AT_FIRST = 80;
const FEW_ROWS = 12;
const MANY_ROWS = 400;

/** A tree of the layers' names; a group stands where its first layer stands. */
export class Tree {
  /** @param layers of the layout, in forward order */
  constructor(layers) {
    this.layers = layers;
    this.top = { path: "", label: "", children: [], leaves: [], layer: -1, by: new Map() };
    layers.forEach((layer, index) => this.#add(layer.name, index));
    this.#join(this.top);
    delete this.top.by;
    this.groups = [];
    this.#number(this.top, 0);
  }

  #add(name, index) {
    let node = this.top;
    const parts = name.split(".");
    parts.forEach((part, at) => {
      node.leaves.push(index);
      let next = node.by.get(part);
      if (!next) {
        next = { path: parts.slice(0, at + 1).join("."), label: part, children: [], leaves: [], layer: -1, by: new Map() };
        node.by.set(part, next);
        node.children.push(next);
      }
      node = next;
    });
    node.leaves.push(index);
    node.layer = index;
  }

  #join(node) {
    for (const child of node.children) this.#join(child);
    node.children = node.children.map((child) => {
      // A group of one is no group: its name becomes part of the name below it.
      if (child.children.length === 1 && child.layer < 0) {
        const [only] = child.children;
        return { ...only, label: `${child.label}.${only.label}` };
      }
      return child;
    });
    if (node.layer >= 0 && node.children.length) {
      node.children.unshift({ path: node.path, label: "(itself)", children: [], leaves: [node.layer], layer: node.layer });
      node.layer = -1;
    }
    for (const child of node.children) delete child.by;
  }

  #number(node, depth) {
    node.depth = depth;
    for (const child of node.children) {
      if (child.children.length) this.groups.push(child);
      this.#number(child, depth + 1);
    }
  }

  /** The groups that are open at first: whole levels, as long as the rows stay few enough to take in. */
  openAtFirst() {
    const open = new Set();
    const deepest = this.groups.reduce((most, group) => Math.max(most, group.depth), 0);
    for (let depth = 1; depth <= deepest; depth++) {
      const level = this.groups.filter((group) => group.depth === depth);
      const trial = new Set([...open, ...level.map((group) => group.path)]);
      const rows = this.rows(trial, new Set(), false).length;
      // A hundred blocks are better to look at than one row that stands for all of them.
      const most = this.rows(open, new Set(), false).length < FEW_ROWS ? MANY_ROWS : ROWS_AT_FIRST;
      if (rows > most) break;
      for (const group of level) open.add(group.path);
    }
    return open;
  }

  /** Paths of the groups around a layer. */
  around(layer) {
    return this.groups.filter((group) => group.leaves.includes(layer)).map((group) => group.path);
  }

  /**
   * What is seen, from top to bottom: {key, kind: "group" | "layer" | "parameter", name, label, depth, layer, leaves, open, folds}.
   *
   * @param open paths of the groups that are open
   * @param opened names of the layers whose parameters are seen
   * @param parameters whether the statistic has a value for each parameter
   */
  rows(open, opened, parameters) {
    const rows = [];
    const visit = (node) => {
      for (const child of node.children) {
        if (child.children.length) {
          const isOpen = open.has(child.path);
          rows.push({ ...this.#row(child, "group", `group ${child.path}`), open: isOpen, folds: true });
          if (isOpen) visit(child);
        } else {
          rows.push(...this.#layer(child, child.label, child.depth, opened, parameters));
        }
      }
    };
    visit(this.top);
    return rows;
  }

  /** The width of the longest label, in characters, with everything unfolded; a level of depth counts as two. */
  widest() {
    const open = new Set(this.groups.map(({ path }) => path));
    const width = ({ label, depth, kind }) => label.length + 2 * depth + (kind === "group" ? 5 : 0);
    return this.rows(open, new Set(), false).reduce((most, row) => Math.max(most, width(row)), 0);
  }

  /** The layers whose name holds a text, each by its full name. */
  found(text, opened, parameters) {
    const wanted = text.toLowerCase();
    const rows = [];
    this.layers.forEach((layer, index) => {
      if (!layer.name.toLowerCase().includes(wanted)) return;
      rows.push(...this.#layer({ path: layer.name, layer: index, leaves: [index] }, layer.name, 1, opened, parameters));
    });
    return rows;
  }

  #row(node, kind, key) {
    return { key, kind, name: node.path, label: node.label, depth: node.depth, layer: node.layer, leaves: node.leaves };
  }

  #layer(node, label, depth, opened, parameters) {
    const layer = this.layers[node.layer];
    const folds = parameters && layer.parameters.length > 1;
    const open = folds && opened.has(layer.name);
    const row = { ...this.#row(node, "layer", `layer ${layer.name}`), name: layer.name, label, depth, folds, open };
    if (!open) return [row];
    const below = layer.parameters.map((name, index) => ({
      key: `parameter ${name}`,
      kind: "parameter",
      name,
      label: name.startsWith(`${layer.name}.`) ? name.slice(layer.name.length + 1) : name,
      depth: depth + 1,
      layer: node.layer,
      leaves: [],
      parameter: index,
      open: false,
      folds: false,
    }));
    return [row, ...below];
  }
}

/* The Safe zone tab: figures that Python drew, in the page's theme and width, and the progress of a sweep.
 * Values from outside reach the page through textContent and plotly only, whose texts Python has escaped. */
"use strict";
(() => {
  const { make } = window.LoraDrop;
  const NARROW = 700; // pixels of a panel below which its maps stand one below the other
  const CONFIG = {
    displaylogo: false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // none of those that ask another host
    toImageButtonOptions: { width: 1600, height: 900, scale: 2 },
  };

  const theme = () => (document.body.classList.contains("dark") ? "dark" : "light");

  /** Mount a figure: props.value is {title, note, columns, rows, wide, narrow} with a plotly figure by theme in the
   * last two, or a text that says why there is none. */
  function mountFigure(element, props, watch) {
    const find = (selector) => element.querySelector(selector);
    const [frame, plot] = [find(".ld-figure"), find(".ld-figure-plot")];
    let drawn = ""; // the shape and theme on the page

    /** Draw the figure that fits the panel, unless it is there already. */
    function draw(force) {
      const value = props.value;
      const width = plot.clientWidth;
      const shape = width < NARROW ? "narrow" : "wide";
      const wanted = `${shape} ${theme()}`;
      if (typeof value === "string" || !width) return;
      frame.dataset.shape = shape;
      if (!force && wanted === drawn) {
        window.Plotly.Plots.resize(plot);
        return;
      }
      drawn = wanted;
      // Plotly writes into what it is given, and the value has to stay as it came for the other theme.
      const { data, layout } = structuredClone(value[shape][theme()]);
      window.Plotly.react(plot, data, { ...layout, autosize: true }, CONFIG);
    }

    function take() {
      const value = props.value;
      const empty = typeof value === "string";
      frame.dataset.state = empty ? "empty" : "drawn";
      find(".ld-empty").textContent = empty ? value : "";
      find("h3").textContent = empty ? "" : value.title;
      find("figcaption small").textContent = empty ? "" : value.note;
      // A group, as plotly's buttons are in it; the table below has every number.
      for (const [name, text] of Object.entries({ role: "group", "aria-label": `${value.title}. ${value.note}` })) {
        if (empty) plot.removeAttribute(name);
        else plot.setAttribute(name, text);
      }
      const head = make("tr");
      head.append(...(empty ? [] : value.columns).map((name) => Object.assign(make("th", "", name), { scope: "col" })));
      find("thead").replaceChildren(head);
      find("tbody").replaceChildren(
        ...(empty ? [] : value.rows).map((cells) => {
          const row = make("tr");
          row.append(...cells.map((cell) => make("td", "", cell)));
          return row;
        }),
      );
      if (empty) {
        if (drawn) window.Plotly.purge(plot);
        drawn = "";
      } else draw(true);
    }

    watch("value", take);
    // A panel has no width until its tab is opened, and another one when the window changes.
    new ResizeObserver(() => draw(false)).observe(plot);
    new MutationObserver(() => draw(false)).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    take();
  }

  /** Mount the progress: props.value is {kind, text, done, total}. */
  function mountProgress(element, props, watch) {
    const [line, bar] = [element.querySelector(".ld-status"), element.querySelector("progress")];
    const draw = () => {
      const { kind, text, done, total } = props.value;
      line.textContent = text;
      line.dataset.kind = kind;
      line.title = text;
      bar.max = Math.max(total, 1);
      bar.value = done;
      bar.dataset.kind = kind;
    };
    watch("value", draw);
    draw();
  }

  Object.assign(window.LoraDrop, { mountFigure, mountProgress });
})();

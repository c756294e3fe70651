/* The one button: it shows what LoRA-Drop does, until a control was moved; then it runs what the controls say. */

/**
 * @param {import("../store.js").Store} store
 */
export function mountRunButton(store) {
  const draw = () => {
    const button = document.querySelector("#ld-run");
    const stop = document.querySelector("#ld-stop");
    if (!(button instanceof HTMLElement) || !(stop instanceof HTMLElement)) return;
    const { isMoved } = store.state;
    button.textContent = isMoved ? "Run" : "Show me";
    button.dataset.testid = isMoved ? "run" : "show-me";
    button.title = isMoved
      ? "Answers the prompt with the settings below; the answers and charts are drawn anew"
      : "Answers the prompt three times, side by side";
    stop.dataset.testid = "stop";
    stop.title = "Ends the run after the step that it is in; what was written stays";
    const open = document.querySelector("#ld-open");
    if (open instanceof HTMLElement) open.title = "Shows a run that was saved as a trace, in place of the one below";
  };
  store.subscribe(["isMoved", "settings"], draw);
  draw();
}

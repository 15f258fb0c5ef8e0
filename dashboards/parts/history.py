"""The browser's history: going back undoes one act, a click or a turned page."""

from streamlit.components.v2 import component

# Streamlit makes an entry for each field that a run writes into the address, and when a page is turned, for the address
# of the old page without its fields. Of one run the last entry alone is kept, in place of the others.
_JS = """
export default function () {
  const app = document.querySelector('[data-testid="stApp"]');
  if (window.interpHistory === app) return;
  window.interpHistory = app;
  let isFirst = false;
  const hasEnded = () => { if (app.dataset.testScriptState === 'notRunning') isFirst = true; };
  new MutationObserver(hasEnded).observe(app, { attributes: true, attributeFilter: ['data-test-script-state'] });
  const push = history.pushState, replace = history.replaceState;
  history.pushState = function (...entry) {
    (isFirst ? push : replace).apply(history, entry);
    isFirst = false;
  };
}
"""

_history = component("interp_history", html="<span></span>", js=_JS)


def one_entry_a_run() -> None:
    """From now on each run of the script leaves one entry in the browser's history at most."""
    _history(key="history", height=1)

"""The dashboard's entry: the sidebar, the prompt, the pages. `streamlit run dashboards/heads.py`."""

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))  # streamlit puts this file's folder there, and the clone may not be installed

# A picture of our own: the icons that streamlit knows by name come from another host.
st.set_page_config(page_title="interp", page_icon=HERE / "icon.png", layout="wide")

# Less room above and beside the page than streamlit leaves, numbers in a row that are no headlines, and no room for
# what has no shape.
st.html(
    "<style>[data-testid=stMainBlockContainer] { padding: 4.2rem 2.5rem 4rem } "
    "[data-testid=stMetricValue] { font-size: 1.25rem } "
    ".st-key-history { position: absolute }</style>"
)

from dashboards.parts.links import keep_fields  # noqa: E402
from dashboards.parts.sidebar import sidebar  # noqa: E402  torch takes a second: the frame is drawn first

PAGES = {
    "heads": ("Heads", ":material/grid_view:"),
    "lens": ("Lens", ":material/layers:"),
    "attribution": ("Attribution", ":material/bar_chart:"),
    "patching": ("Patching", ":material/swap_horiz:"),
    "ablation": ("Ablation", ":material/content_cut:"),
    "compare": ("Compare", ":material/compare:"),
    "memories": ("Memories", ":material/key:"),
    "generate": ("Generate", ":material/edit_note:"),
    "walkthrough": ("Walkthrough", ":material/route:"),
    "training": ("Training", ":material/show_chart:"),
    "model": ("Model", ":material/schema:"),
}

pages = [
    st.Page(HERE / "views" / f"{name}.py", title=title, icon=icon)
    for name, (title, icon) in PAGES.items()
    if (HERE / "views" / f"{name}.py").is_file()
]
page = st.navigation(pages)
sidebar()
try:
    page.run()
finally:  # a page that lacks something stops
    keep_fields()

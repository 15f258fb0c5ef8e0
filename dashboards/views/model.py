"""What the model is."""

import streamlit as st

from dashboards.parts.state import opened

now = opened()
st.title(now.name)
st.caption(f"{now.fingerprint} · {sum(weight.numel() for weight in now.model.parameters()):,} parameters")
st.json(now.model.cfg.to_dict(), expanded=False)

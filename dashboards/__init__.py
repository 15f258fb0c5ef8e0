"""The dashboard: `streamlit run dashboards/heads.py`. Pages hold widgets; numbers and figures are `interp`'s."""

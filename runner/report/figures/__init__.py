"""The report's figures: their data (`heatmap`; `curves`, `rates` over `series`), and their pictures (`draw`; `chart`)."""

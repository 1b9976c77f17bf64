"""The report's figures: their data (`heatmap`; `curves`, `rates` over `series`), and their pictures (`draw`; `chart`).

A chart has two scales (`axis`) and shows curves that lie on each other (`overlaps`).
"""

"""The report's figures: `heatmap` and `curves` make their data, `draw` draws them."""

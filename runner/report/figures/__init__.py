"""The figures: their data (`heatmap`, `curves`) and how they are drawn (`draw`)."""

"""Run folders -> tables, figures and one HTML page. Only reads files: never executes what is in them or imports torch."""

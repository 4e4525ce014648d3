"""The jitted passes of codec `rans`. Imported on first use, so that `import sparsefmt` stays light."""

"""The op table and the kernels of each device kind."""

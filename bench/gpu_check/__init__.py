"""``python -m bench.gpu_check``: prove and measure a CUDA card in one run; see ``runner``."""

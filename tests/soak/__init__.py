"""Long runs that look for what is lost, wrong, leaked or stuck; ``python -m tests.soak``."""

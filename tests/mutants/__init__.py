"""Guards removed one at a time, to show that the tests would notice: ``make mutants``."""

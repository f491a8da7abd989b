"""Cost model and placement policies: pure functions over a problem."""
